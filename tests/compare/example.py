"""A synthetic study of four arms, as its rows would lie in the store."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import NamedTuple

import numpy as np

from tuner.compare.verdicts import ArmScores, Comparison, compare
from tuner.records import (
    Configuration,
    Evaluation,
    Failure,
    LrCurve,
    Stage,
    Study,
    Trial,
)

STEPS = 400
# arm: (optimizer, schedule, best lr, validation loss there)
ARMS = {
    "adamw-warmup_cosine": ("adamw", "warmup_cosine", 3e-3, 0.300),
    "sgd-cosine": ("sgd", "cosine", 1e-1, 0.304),
    "lion-linear": ("lion", "linear", 3e-4, 0.345),
    "rmsprop-constant": ("rmsprop", "constant", 1e-3, 0.390),
}
START = datetime(2026, 3, 1, 9, 0, tzinfo=UTC)


class Example(NamedTuple):
    study: Study
    trials: list[Trial]
    evaluations: dict[int, list[Evaluation]]
    lr_curves: dict[int, LrCurve]
    comparison: Comparison


def _loss(arm: str, lr: float, rng: np.random.Generator) -> float | None:
    _, _, best, floor = ARMS[arm]
    distance = np.log10(lr / best)
    if distance > 0.9:
        return None
    return float(floor + 0.08 * distance**2 + 0.006 * rng.standard_normal())


def _evaluations(final: float, lr: float, rng: np.random.Generator) -> list[Evaluation]:
    out = []
    for step in range(40, STEPS + 1, 40):
        done = step / STEPS
        loss = final + 1.2 * np.exp(-4 * done) - 1.2 * np.exp(-4) + 0.004 * rng.standard_normal()
        out.append(
            Evaluation(
                step=step,
                examples=64 * step,
                seconds=0.01 * step,
                lr=lr * (0.5 + 0.5 * np.cos(np.pi * done)) + lr * 1e-3,
                train_loss=float(loss * 0.9),
                grad_norm=1.0,
                metrics={"loss": float(loss if step < STEPS else final)},
            )
        )
    return out


def _curve(lr: float) -> LrCurve:
    lrs = np.geomspace(lr / 1e3, lr * 30, 90)
    losses = 2.3 - 0.8 / (1 + (lr / lrs) ** 1.2) + 0.4 * (lrs / lr / 8) ** 3
    points = [(float(x), float(y)) for x, y in zip(lrs, losses, strict=True)]
    return LrCurve(
        points=points, suggested_lr=lr, low=lr / 30, high=lr * 6, diverges_at=lr * 10,
        reason="steepest descent, half a decade below the explosion",
    )  # fmt: skip


def example(state: str = "completed") -> Example:
    """Build the study; deterministic."""
    rng = np.random.default_rng(11)
    trials: list[Trial] = []
    evaluations: dict[int, list[Evaluation]] = {}
    curves: dict[int, LrCurve] = {}

    def add(arm: str, stage: Stage, seed: int, lr: float, value: float | None) -> Trial:
        optimizer, schedule, *_ = ARMS[arm]
        number = len(trials)
        params = {"lr": lr, "batch_size": 64, "weight_decay": 0.01}
        failure = None
        if value is None:
            failure = Failure(kind="diverged", message=f"loss is not finite at step {number + 7}")
        trial = Trial(
            number=number, arm=arm, stage=stage, seed=seed,
            state="completed" if value is not None else "diverged",
            point={"lr": lr, "weight_decay": 0.01}, params=params,
            configuration=Configuration(
                optimizer=optimizer, schedule=schedule, batch_size=64,
                optimizer_args={"lr": lr, "weight_decay": 0.01},
            ),
            value=value, metrics={} if value is None else {"loss": value},
            steps=STEPS if value is not None else 57, wall_seconds=4.0, device="cpu",
            host="box", failure=failure,
        )  # fmt: skip
        trials.append(trial)
        if value is not None and stage != "lr-range":
            evaluations[number] = _evaluations(value, lr, rng)
        return trial

    chosen = {arm: best * 1.2 for arm, (_, _, best, _) in ARMS.items()}
    for arm in ARMS:
        add(arm, "defaults", 0, 1e-3, _loss(arm, 1e-3, rng))
    for arm, (_, _, best, _) in ARMS.items():
        curves[add(arm, "lr-range", 0, best, best).number] = _curve(best)
    for index in range(16):
        for arm, (_, _, best, _) in ARMS.items():
            lr = float(best * 10 ** rng.uniform(-1.5, 1.2))
            add(arm, "explore", index, lr, _loss(arm, lr, rng))
    for seed in range(200, 208):
        shared = 0.003 * rng.standard_normal()
        for arm, lr in chosen.items():
            value = _loss(arm, lr, rng)
            add(arm, "decide", seed, lr, None if value is None else value + shared)
    return Example(_study(state), trials, evaluations, curves, _comparison(trials))


def _comparison(trials: list[Trial]) -> Comparison:
    arms = []
    for arm, (optimizer, schedule, *_) in ARMS.items():
        mine = [t for t in trials if t.arm == arm and t.stage == "decide"]
        explored = [t for t in trials if t.arm == arm and t.stage == "explore"]
        arms.append(
            ArmScores(
                name=arm, optimizer=optimizer, schedule=schedule, params=mine[0].params,
                seeds=[t.seed for t in mine], scores=[t.value for t in mine],
                explored=len(explored),
                explored_values=[t.value for t in explored if t.value is not None],
                flags=["at-bound-lr"] if arm.startswith("rmsprop") else [],
            )
        )  # fmt: skip
    return compare(arms, "minimize", rng=np.random.default_rng(0), metric="loss")


def _study(state: str) -> Study:
    return Study(
        name="digits",
        state=state,
        spec={
            "study": {"name": "digits", "task": "studies.digits:build", "metric": "loss"},
            "budget": {"max_steps": STEPS, "trials_per_arm": 16, "decide_seeds": 8},
        },
        created_at=START,
        updated_at=START + timedelta(minutes=31),
        provenance={"task": "studies.digits:build", "code": {"commit": "1a2b3c4", "dirty": False},
                    "packages": {"torch": "2.13.0", "optuna": "5.0.0"}},
    )  # fmt: skip
