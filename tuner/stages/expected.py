"""What an arm's configurations are expected to give over seeds, by everything the arm has run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from tuner.records import Stage, Trial
from tuner.search import Estimate, Observation, estimates
from tuner.space import Point, Space, arm_space, default_point
from tuner.spec import StudySpec
from tuner.stages.history import OPEN, History, observation

EXPLORED: tuple[Stage, ...] = ("calibrate", "defaults", "screen", "explore")
CHOOSING: tuple[Stage, ...] = (*EXPLORED, "confirm")


def expected(
    spec: StudySpec, history: History, arm: str, stages: Sequence[Stage] = CHOOSING
) -> list[Estimate]:
    """The points of an arm with a full run, best first; runs that judge take no part."""
    runs = [t for stage in stages for t in history.of(stage, arm) if t.state not in OPEN]
    return smoothed(spec, history, arm, runs)


def smoothed(
    spec: StudySpec, history: History, arm: str, runs: Sequence[Trial], length: float = 1.0
) -> list[Estimate]:
    """The points of some runs that ran for `length` of a full trial, best first."""
    section = spec.arm(arm)
    default = default_point(spec, section)
    space = _hull(arm_space(spec, section, history.curve(arm)), [t.point for t in runs])
    axes = [d.name for d in space]
    original: dict[tuple[float, ...], Point] = {}
    seen: list[Observation] = []
    for trial in runs:
        complete = {name: trial.point.get(name, default[name]) for name in axes}
        original.setdefault(tuple(complete.values()), trial.point)
        share = 1.0 if trial.length == length else trial.length / length
        seen.append(replace(observation(trial), point=complete, length=share))
    found = estimates(space, seen, spec.study.direction)
    return [replace(e, point=original[tuple(e.point.values())]) for e in found]


def leading_point(spec: StudySpec, history: History, arm: str) -> tuple[Point, float] | None:
    """The configuration that an arm would answer now and the value to report; None without one.

    While the arm still chooses, both are the surrogate's. Once its choice is made, runs that took
    no part in it tell the value.
    """
    best = expected(spec, history, arm)
    if not best:
        return None
    confirmed = {tuple(sorted(t.point.items())) for t in history.of("confirm", arm)}
    chosen = next((e for e in best if tuple(sorted(e.point.items())) in confirmed), best[0])
    judged = [
        t.value
        for t in history.of("decide", arm)
        if t.value is not None and t.point == chosen.point and t.state == "completed"
    ]
    return chosen.point, sum(judged) / len(judged) if judged else chosen.value


def _hull(space: Space, points: Sequence[Point]) -> Space:
    """The box, wide enough for all points that a log axis can hold."""
    axes = []
    for axis in space:
        values = [p[axis.name] for p in points if p.get(axis.name, 0.0) > 0 or not axis.log]
        if axis.values or axis.low >= axis.high or not values:
            axes.append(axis)
        else:
            low, high = min([axis.low, *values]), max([axis.high, *values])
            axes.append(replace(axis, low=low, high=high))
    return tuple(axes)
