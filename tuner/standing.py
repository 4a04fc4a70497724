"""Where a study stands: stage, arms, best so far with its interval, what is left, what failed."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tuner.answer import compare_study
from tuner.records import Stage, Trial
from tuner.spec import StudySpec
from tuner.stages import (
    OPEN,
    Calibration,
    Cost,
    History,
    calibration,
    expected_trials,
    final_box,
    full_costs,
    judged_trials,
    leading,
    resolved,
    unresolved_bounds,
    widenings,
)

_RANGE: Stage = "lr-range"


@dataclass(frozen=True)
class Left:
    """What a study still needs, at most."""

    trials: int
    steps: int | None  # None while nothing says how long a trial is
    seconds: float | None  # with all slots at work


@dataclass(frozen=True)
class Best:
    """The configuration that an arm would answer now, and what it gives over seeds.

    `low` and `high` bound that with 95 %. Once runs judge the configuration these are the numbers
    of the comparison. Before, they are those of the model of all the arm's runs: the score of a
    run, or of a few, that was chosen for being good is better than what the configuration gives.
    """

    value: float
    low: float | None
    high: float | None
    runs: int  # of this configuration that the numbers rest on
    fresh: bool  # whether these took no part in the choice
    params: dict[str, Any]
    number: int  # of one of the trials


@dataclass(frozen=True)
class ArmStanding:
    """How far an arm is."""

    name: str
    finished: int
    expected: int
    best: Best | None
    lr_box: tuple[float, float]
    on_bound: list[str]  # moved bounds, in words
    flags: list[str]  # "at-bound-lr": unresolved
    largest_part: int | None  # of a batch that fits in memory, where a limit was met


@dataclass(frozen=True)
class Standing:
    """Where a study stands."""

    stage: Stage | None  # None when it is over
    finished: Mapping[Stage, int]
    expected: Mapping[Stage, int]
    arms: Sequence[ArmStanding]
    failures: Mapping[str, int]
    calibration: Calibration
    left: Left


def remaining(spec: StudySpec, history: History) -> Left:
    """What a study still needs, at most; the same rows give the same answer."""
    costs = full_costs(spec, history)
    finished = Counter((t.stage, t.arm) for t in history.trials.values() if t.state not in OPEN)
    trials, steps, seconds = 0, 0.0, 0.0
    for stage, arms in expected_trials(spec, history).items():
        for arm, expected in arms.items():
            count = max(0, expected - finished[stage, arm])
            trials += count
            cost = _cost_of(spec, history, stage, arm, costs.get(arm))
            steps += count * cost.steps
            seconds += count * cost.seconds
    slots = spec.run.slots or 1
    known = bool(costs)
    return Left(trials, round(steps) if known else None, seconds / slots if known else None)


def _cost_of(spec: StudySpec, history: History, stage: Stage, arm: str, full: Cost | None) -> Cost:
    """Of one trial: by those of its stage, since a batch size that was chosen changes the steps."""
    for alike in ("decide", "confirm") if stage == "decide" else (stage,):
        trials = history.of(alike, None if stage == _RANGE else arm)
        if done := [t for t in trials if t.state == "completed"]:
            return Cost(
                statistics.fmean(t.steps for t in done),
                statistics.fmean(t.wall_seconds for t in done),
            )
    full = full or Cost(0.0, 0.0)
    if stage == _RANGE:
        rate = full.seconds / full.steps if full.steps else 0.0
        return Cost(spec.budget.lr_range_steps, spec.budget.lr_range_steps * rate)
    length = spec.budget.screen_length if stage == "screen" else 1.0
    return Cost(full.steps * length, full.seconds * length)


def best_of(spec: StudySpec, history: History, arm: str) -> Best | None:
    """What an arm would answer now: as it is judged, else as it is expected to be."""
    return _judged(spec, history).get(arm) or _expected(spec, history, arm)


def _judged(spec: StudySpec, history: History) -> dict[str, Best]:
    """The arms that were judged, as the comparison of this moment has them."""
    runs = {a.name: judged_trials(spec, history, a.name) for a in spec.arms}
    if not any(t.state == "completed" for trials in runs.values() for t in trials):
        return {}
    comparison = compare_study(spec, list(history.trials.values()), history.curves)
    chose = spec.budget.decide_seeds == 0 and spec.budget.confirm_top > 1
    return {
        a.name: Best(
            value=a.mean,
            low=a.ci_low,
            high=a.ci_high,
            runs=len(a.seeds),
            fresh=not chose,
            params=a.params,
            number=runs[a.name][0].number,
        )
        for a in comparison.arms
        if runs[a.name]
    }


def _expected(spec: StudySpec, history: History, arm: str) -> Best | None:
    found = leading(spec, history, arm)
    if found is None:
        return None
    runs = [
        t
        for t in history.trials.values()
        if t.arm == arm and t.point == found.point and t.state == "completed"
    ]
    if not runs:  # the same point may be written without axes that came later
        return None
    return Best(
        value=found.value,
        low=found.low,
        high=found.high,
        runs=len(runs),
        fresh=False,
        params=runs[0].params,
        number=runs[0].number,
    )


def known_limits(trials: Sequence[Trial]) -> dict[str, int]:
    """The largest part of a batch that fits in memory, by arm, where a trial has found one.

    A limit never grows again: what ran out of memory once would do so in every later trial.
    """
    limits: dict[str, int] = {}
    for trial in trials:
        if trial.micro_batch is not None:
            limits[trial.arm] = min(trial.micro_batch, limits.get(trial.arm, trial.micro_batch))
    return limits


def standing_of(spec: StudySpec, history: History) -> Standing:
    """Where a study stands, by its rows; pure."""
    spec = resolved(spec, history)
    finished = [t for t in history.trials.values() if t.state not in OPEN]
    expected = expected_trials(spec, history)
    by_stage = Counter(t.stage for t in finished)
    by_arm = Counter(t.arm for t in finished)
    sizes = {stage: sum(arms.values()) for stage, arms in expected.items()}
    judged = _judged(spec, history)
    limits = known_limits(list(history.trials.values()))
    arms = []
    for arm in spec.arms:
        axis = next(d for d in final_box(spec, history, arm.name) if d.name == "lr")
        arms.append(
            ArmStanding(
                name=arm.name,
                finished=by_arm[arm.name],
                expected=sum(stage[arm.name] for stage in expected.values()),
                best=judged.get(arm.name) or _expected(spec, history, arm.name),
                lr_box=(axis.low, axis.high),
                on_bound=[str(hit) for hit in widenings(spec, history, arm.name)],
                flags=unresolved_bounds(spec, history, arm.name),
                largest_part=limits.get(arm.name),
            )
        )
    return Standing(
        stage=next((s for s, size in sizes.items() if by_stage[s] < size), None),
        finished={s: by_stage[s] for s in sizes},
        expected=sizes,
        arms=arms,
        failures=dict(Counter(t.failure.kind for t in finished if t.failure is not None)),
        calibration=calibration(spec, history),
        left=remaining(spec, history),
    )
