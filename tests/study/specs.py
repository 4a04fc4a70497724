"""Small studies for tests, and a simulator that runs one without training."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Callable
from typing import Any

from tuner.records import LrCurve, Stage, Trial
from tuner.service import Environment
from tuner.spec import StudySpec, parse_spec
from tuner.stages import STAGES, History, next_trials

ADAMW = {"optimizer": "adamw", "schedule": "warmup_cosine", "clip_norm": 1.0}
SGD = {"optimizer": "sgd", "schedule": "cosine", "optimizer_args": {"momentum": 0.9}}


def study_data(**sections: dict[str, Any]) -> dict[str, Any]:
    """A study file's data: two arms on the tiny task, a few dozen short trials."""
    data: dict[str, Any] = {
        "study": {"name": "small", "task": "tiny:build", "metric": "acc", "direction": "maximize"},
        "budget": {
            "max_steps": 12,
            "evaluations": 4,
            "calibrate_seeds": 1,
            "trials_per_arm": 5,
            "extend_trials": 0,
            "confirm_top": 2,
            "confirm_seeds": 2,
            "decide_seeds": 3,
            "decide_looks": 1,
            "lr_range_steps": 40,
        },
        "search": {"batch_size": [8, 32]},
        "run": {},
        "arms": [ADAMW, SGD],
    }
    for name, keys in sections.items():
        data[name] = {**data.get(name, {}), **keys} if isinstance(keys, dict) else keys
    return data


def study_spec(**sections: Any) -> StudySpec:
    """The same, validated."""
    return parse_spec(study_data(**sections), "test.toml", "test")


def toml_of(data: dict[str, Any]) -> str:
    """A study's data as the text of a study file."""
    lines = []
    for section in ("study", "budget", "search", "run"):
        lines += [f"[{section}]", *(f"{k} = {json.dumps(v)}" for k, v in data[section].items())]
    for arm in data["arms"]:
        lines += ["[[arms]]", *(f"{k} = {_value(v)}" for k, v in arm.items())]
    return "\n".join(lines)


def _value(value: Any) -> str:
    if isinstance(value, dict):
        return f"{{ {', '.join(f'{k} = {json.dumps(v)}' for k, v in value.items())} }}"
    return json.dumps(value)


QUICK: dict[str, Any] = {
    "budget": {
        "max_steps": 10,
        "evaluations": 2,
        "calibrate_seeds": 1,
        "trials_per_arm": 2,
        "extend_trials": 0,
        "confirm_top": 1,
        "confirm_seeds": 1,
        "decide_seeds": 2,
        "decide_looks": 1,
        "lr_range_steps": 30,
    },
    "search": {"batch_size": [8, 16], "lr": [1e-3, 1e-1]},
    "run": {"slots": 1},
    "arms": [ADAMW],
}


def same(trial: Trial) -> tuple[Any, ...]:
    """What must not depend on how often a study was interrupted."""
    return (trial.number, trial.arm, trial.stage, trial.seed, trial.state, trial.point, trial.value)


def states(env: Environment) -> Counter[str]:
    """How many trials of the study are in each state; none before it is created."""
    known = [study.name for study in env.store.list_studies()]
    return Counter(t.state for t in env.store.trials("small")) if known else Counter()


CURVE = LrCurve(points=[], suggested_lr=1e-2, low=1e-3, high=3e-2, diverges_at=1e-1)


# A study in which every part of the protocol has something to do.
WHOLE: dict[str, Any] = {
    "budget": {
        "max_steps": 400,
        "evaluations": 4,
        "calibrate_seeds": 2,
        "trials_per_arm": 8,
        "extend_trials": 0.25,
        "confirm_top": 2,
        "confirm_seeds": 2,
        "decide_seeds": 9,
        "decide_looks": 3,
    },
    "search": {"batch_size": [8, 32]},
}
SLOW = 3.0  # how much longer a step of SGD takes in a simulated study


def outcome(trial: Trial, value: Callable[[Trial], float | None], full_steps: int = 12) -> Trial:
    """A finished trial with the value of a made-up objective; None = diverged."""
    result = CURVE.suggested_lr if trial.stage == "lr-range" else value(trial)
    state = "diverged" if result is None else "completed"
    steps = 40 if trial.stage == "lr-range" else round(full_steps * trial.length)
    rate = SLOW if trial.configuration.optimizer == "sgd" else 1.0
    cost = {"steps": steps, "wall_seconds": rate * steps}
    return trial.model_copy(update={"state": state, "value": result, **cost})


def simulate(
    spec: StudySpec,
    value: Callable[[Trial], float | None],
    *,
    slots: int = 1,
    order: random.Random | None = None,
    interrupt_after: int | None = None,
    last: Stage = "decide",
) -> dict[int, Trial]:
    """Run a study on `slots` slots whose trials end in random order, to the end of stage `last`.

    After `interrupt_after` finished trials those that run are interrupted and the study goes on
    from its rows, as `resume` does.
    """
    later = STAGES[STAGES.index(last) + 1 :]
    order = order or random.Random(0)
    trials: dict[int, Trial] = {}
    curves: dict[int, LrCurve] = {}
    finished = 0
    while True:
        running = [t for t in trials.values() if t.state == "running"]
        if interrupt_after is not None and finished == interrupt_after:
            interrupt_after = None
            trials |= {t.number: t.model_copy(update={"state": "interrupted"}) for t in running}
            continue
        values = {n: [t.value or 0.0] * spec.budget.evaluations for n, t in trials.items()}
        for trial in next_trials(spec, History(trials, curves, values)):
            if len(running) == slots or trial.stage in later:
                break
            started = trial.model_copy(update={"state": "running"})
            running.append(started)
            trials[trial.number] = started
        if not running:
            return dict(sorted(trials.items()))
        done = outcome(order.choice(running), value, spec.budget.max_steps or 12)
        trials[done.number] = done
        finished += 1
        if done.stage == "lr-range":
            curves[done.number] = CURVE


_simulated: dict[tuple[str, Callable[[Trial], float | None]], dict[int, Trial]] = {}


def simulated(spec: StudySpec, value: Callable[[Trial], float | None]) -> dict[int, Trial]:
    """As `simulate`, once for all tests that read the same study."""
    key = (spec.model_dump_json(), value)
    if key not in _simulated:
        _simulated[key] = simulate(spec, value)
    return dict(_simulated[key])


def history_of(trials: dict[int, Trial]) -> History:
    """What a simulated study has, its range tests included."""
    curves = {n: CURVE for n, t in trials.items() if t.stage == "lr-range" and t.value is not None}
    return History(trials, curves)
