"""What an arm's configurations are expected to give over seeds, by everything the arm has run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from tuner.observed import Observation
from tuner.records import Stage
from tuner.search import Estimate, estimates
from tuner.space import Point, Space, arm_space, default_point
from tuner.spec import StudySpec
from tuner.stages.history import OPEN, History, observation

EXPLORED: tuple[Stage, ...] = ("calibrate", "defaults", "screen", "explore")
CHOOSING: tuple[Stage, ...] = (*EXPLORED, "confirm")


def expected(
    spec: StudySpec,
    history: History,
    arm: str,
    stages: Sequence[Stage] = CHOOSING,
    length: float = 1.0,
) -> list[Estimate]:
    """The points of an arm that ran for `length` of a full trial or more, best first.

    Runs that judge take no part.
    """
    runs = [t for stage in stages for t in history.of(stage, arm) if t.state not in OPEN]
    default = default_point(spec, spec.arm(arm))
    # runs from before a budget by the clock was known lack the axes that it afforded
    points = {t.number: {**default, **t.point} for t in runs}
    searched = [points[t.number] for t in runs if t.stage != "defaults"]
    box = arm_space(spec, spec.arm(arm), history.curve(arm))
    space = _around(box, searched or [*points.values()])
    original: dict[tuple[float, ...], Point] = {}
    seen: list[Observation] = []
    for trial in runs:
        complete = {d.name: points[trial.number][d.name] for d in space}
        original.setdefault(tuple(complete.values()), trial.point)
        seen.append(replace(observation(trial), point=complete))
    found = estimates(space, seen, spec.study.direction, length)
    return [replace(e, point=original[tuple(e.point.values())]) for e in found]


def leading(spec: StudySpec, history: History, arm: str) -> Estimate | None:
    """The configuration that an arm would answer now, by all runs that may choose; None without.

    Of those that were confirmed where there are any. Points of short runs alone count as well.
    """
    best = expected(spec, history, arm, length=0.0)
    confirmed = [t.point for t in history.of("confirm", arm)]
    return next((e for e in best if e.point in confirmed), best[0] if best else None)


def _around(space: Space, points: Sequence[Point]) -> Space:
    """The part of the axes that the points span; a log axis without its zero."""
    axes = []
    for axis in space:
        values = [p[axis.name] for p in points if p.get(axis.name, 0.0) > 0 or not axis.log]
        spans = not axis.values and values
        axes.append(replace(axis, low=min(values), high=max(values)) if spans else axis)
    return tuple(axes)
