"""When the best point lies on a bound of the box, the optimum may lie outside: widen it once."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from tuner.space import Bounds, Dimension, Point, Space, arm_space, inside, suggested_point
from tuner.spec import ArmSection, StudySpec
from tuner.stages.history import OPEN, History, best_points
from tuner.stages.judge import chosen_point

Side = Literal["low", "high"]

_OUTER = 0.1  # of a log range: the best point there, or two of the best three, is on the bound
_FACTOR = 10.0  # by which a bound moves
_PROBE = 1 / 3  # where in the new part the first point lies: a cliff may be near


@dataclass(frozen=True)
class OnBound:
    """An axis whose best points lie on an end of the box."""

    axis: str
    side: Side
    old: tuple[float, float]
    new: tuple[float, float]

    def __str__(self) -> str:
        end = "lower" if self.side == "low" else "upper"
        return (
            f"best {self.axis} on the {end} end of {self.old[0]:.3g} .. {self.old[1]:.3g};"
            f" widened to {self.new[0]:.3g} .. {self.new[1]:.3g}"
        )


def _place(axis: Dimension, point: Point) -> float:
    """Where a point lies on a log axis, from 0 to 1."""
    return axis.fraction(axis.clip(point[axis.name]))


def _can_move(axis: Dimension, side: Side) -> bool:
    """Only log axes; towards zero a weight decay stops to matter, and a beta has its own scale."""
    if not axis.log or axis.complement or axis.values or axis.low >= axis.high:
        return False
    return axis.name == "lr" or (axis.name == "weight_decay" and side == "high")


def on_bounds(space: Space, best: Sequence[Point], outer: float = _OUTER) -> list[OnBound]:
    """The axes on whose ends the best points (best first) lie: the best, or two of three."""
    found = []
    for axis in space:
        if not best or not axis.log or axis.low >= axis.high:
            continue
        places = [_place(axis, p) for p in best[:3]]
        sides: dict[Side, list[bool]] = {
            "low": [p < outer for p in places],
            "high": [p > 1 - outer for p in places],
        }
        for side, near in sides.items():
            if _can_move(axis, side) and (near[0] or sum(near) >= 2):
                new = (
                    (axis.low / _FACTOR, axis.high)
                    if side == "low"
                    else (axis.low, axis.high * _FACTOR)
                )
                found.append(OnBound(axis.name, side, (axis.low, axis.high), new))
    return found


def first_box(spec: StudySpec, history: History, arm: ArmSection) -> Space:
    """The box with which an arm's search begins."""
    return arm_space(spec, arm, history.curve(arm.name))


def searched_first(spec: StudySpec, history: History, arm: str) -> bool:
    """Whether the first part of an arm's exploration is over."""
    trials = history.of("explore", arm)[: full_trials(spec, arm)]
    return len(trials) == full_trials(spec, arm) and all(t.state not in OPEN for t in trials)


def full_trials(spec: StudySpec, arm: str) -> int:
    """How many full trials an arm explores before any bound is moved."""
    trials, budget = spec.trials_of(arm), spec.budget
    if not budget.screens:
        return trials
    # Rounded down: no study file costs a larger share of its configurations in full runs.
    share = math.floor(trials * (budget.promote + budget.refine) + 1e-9)
    return min(trials, max(promoted(spec, arm), share))


def as_explored(spec: StudySpec, arm: str, count: int) -> int:
    """Trials of an arm, counted so that equal budgets are equal numbers.

    With equal wall-clock a slow arm has fewer trials by design and not for want of a search.
    """
    most = max(full_trials(spec, a.name) for a in spec.arms)
    return round(count * most / full_trials(spec, arm))


def explore_cost(spec: StudySpec, arm: str) -> float:
    """What an arm's exploration costs at most before any bound is moved, in full trials."""
    short = spec.budget.screen_length if spec.budget.screens else 0.0
    return full_trials(spec, arm) + short * spec.trials_of(arm)


def extra_trials(spec: StudySpec, arm: str) -> int:
    """How many full trials an arm gets when a bound of any arm was moved."""
    return math.ceil(explore_cost(spec, arm) * spec.budget.extend_trials)


def promoted(spec: StudySpec, arm: str) -> int:
    """How many screened configurations of an arm are run at full length."""
    return math.ceil(spec.trials_of(arm) * spec.budget.promote)


def widenings(spec: StudySpec, history: History, arm: str) -> list[OnBound]:
    """The bounds of an arm that are moved after the first part of its exploration."""
    if not spec.budget.extend_trials or not searched_first(spec, history, arm):
        return []
    section = spec.arm(arm)
    tried = history.of("explore", arm)[: full_trials(spec, arm)]
    return on_bounds(first_box(spec, history, section), best_points(spec, tried))


def widened(spec: StudySpec, history: History, arm: str) -> Bounds:
    """The bounds that replace those of the first box."""
    bounds: dict[str, tuple[float, float]] = {}
    for hit in widenings(spec, history, arm):
        low, high = bounds.get(hit.axis, hit.old)
        bounds[hit.axis] = (min(low, hit.new[0]), max(high, hit.new[1]))
    return bounds


def final_box(spec: StudySpec, history: History, arm: str) -> Space:
    """The box that an arm has searched in the end, its moved bounds included."""
    return arm_space(spec, spec.arm(arm), history.curve(arm), widened(spec, history, arm))


def unresolved_bounds(spec: StudySpec, history: History, arm: str) -> list[str]:
    """ "at-bound-lr" when the chosen learning rate lies on the outer tenth of the final box.

    Then a better one may lie outside, and the arm is under-explored, not a loser. A weight decay on
    its bound is no such reason: towards zero it simply stops to matter.
    """
    point = chosen_point(spec, history, arm)
    if point is None:
        return []
    axis = next(d for d in final_box(spec, history, arm) if d.name == "lr")
    if axis.low >= axis.high or not axis.contains(point["lr"]):
        return []
    place = _place(axis, point)
    return ["at-bound-lr"] if place < _OUTER or place > 1 - _OUTER else []


def beyond(spec: StudySpec, history: History, arm: str) -> list[Point]:
    """The best point with each moved axis a third into what its box gained, on the log scale."""
    hits = widenings(spec, history, arm)
    if not hits:
        return []
    best = best_points(spec, history.of("explore", arm)[: full_trials(spec, arm)])
    default = suggested_point(spec, spec.arm(arm), history.curve(arm))
    space = final_box(spec, history, arm)
    points = []
    for hit in hits:
        old, new = (hit.old[0], hit.new[0]) if hit.side == "low" else (hit.old[1], hit.new[1])
        points.append(inside(space, {**best[0], hit.axis: old * (new / old) ** _PROBE}, default))
    return points
