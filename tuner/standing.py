"""Where a study stands: stage, arms, best so far with its interval, what is left, what failed."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from scipy.special import stdtrit

from tuner.compare.statistics import t_interval
from tuner.records import Stage, Trial
from tuner.spec import StudySpec
from tuner.stages import (
    OPEN,
    Calibration,
    Cost,
    History,
    better_first,
    calibration,
    chosen_point,
    expected_trials,
    final_box,
    full_costs,
    judged_trials,
    resolved,
    unresolved_bounds,
    widenings,
)

_ENOUGH = 3  # degrees of freedom of the seed noise; with fewer, an interval says nothing
_RANGE: Stage = "lr-range"


@dataclass(frozen=True)
class Left:
    """What a study still needs, at most."""

    trials: int
    steps: int | None  # None while nothing says how long a trial is
    seconds: float | None  # with all slots at work


@dataclass(frozen=True)
class Best:
    """The best configuration of an arm so far.

    `low` and `high` bound its mean: by a t interval over fresh seeds, or for a single run by the
    seed noise, once enough runs tell of that. A single run that was chosen for its score is
    optimistic.
    """

    value: float
    low: float | None
    high: float | None
    runs: int
    fresh: bool  # whether the runs took no part in the choice
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


def best_of(spec: StudySpec, history: History, arm: str, noise: Calibration) -> Best | None:
    """The best configuration of an arm so far: judged, else confirmed, else of one run."""
    point = chosen_point(spec, history, arm)
    judged = judged_trials(spec, history, arm)
    confirmed = [t for t in history.of("confirm", arm) if t.point == point]
    for runs, fresh in ((judged, True), (confirmed, False)):
        done = [t for t in runs if t.state == "completed" and t.value is not None]
        if done:
            values = [t.value or 0.0 for t in done]
            interval = t_interval(values) if len(values) > 1 else None
            mean = statistics.fmean(values)
            low, high = (interval.low, interval.high) if interval else _one_run(mean, noise)
            return Best(mean, low, high, len(done), fresh, done[0].params, done[0].number)
    tried = [*history.first_runs(arm), *history.of("explore", arm)]
    first = next(iter(better_first(spec, tried or history.of("screen", arm))), None)
    if first is None or first.value is None:
        return None
    low, high = _one_run(first.value, noise)
    return Best(first.value, low, high, 1, False, first.params, first.number)


def _one_run(value: float, noise: Calibration) -> tuple[float | None, float | None]:
    if noise.sigma is None or noise.freedom < _ENOUGH:
        return (None, None)
    either_side = stdtrit(noise.freedom, 0.975) * noise.sigma
    return (value - either_side, value + either_side)


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
    noise = calibration(spec, history)
    limits = known_limits(list(history.trials.values()))
    arms = []
    for arm in spec.arms:
        axis = next(d for d in final_box(spec, history, arm.name) if d.name == "lr")
        arms.append(
            ArmStanding(
                name=arm.name,
                finished=by_arm[arm.name],
                expected=sum(stage[arm.name] for stage in expected.values()),
                best=best_of(spec, history, arm.name, noise),
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
        calibration=noise,
        left=remaining(spec, history),
    )
