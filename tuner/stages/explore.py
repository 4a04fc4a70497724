"""The search: many short runs, the promising ones at full length, and a second look at bounds.

A short run has its schedule rescaled to its own length. It is compared with short runs of the same
arm only; what it says about full runs is corrected by the configurations that were run at both
lengths. Two short runs never share a seed with the full ones that they lead to, so that a lucky
seed is not lucky twice.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from tuner.observed import Observation
from tuner.records import Direction, StopRule, Trial
from tuner.search import promising, propose
from tuner.space import (
    NOT_WIDENED,
    Bounds,
    Point,
    Space,
    arm_space,
    default_point,
    warmup_of,
)
from tuner.spec import ArmSection, StudySpec
from tuner.stages.bounds import (
    beyond,
    extra_trials,
    full_trials,
    promoted,
    widened,
    widenings,
)
from tuner.stages.history import (
    EXPLORING,
    OPEN,
    TRYING,
    History,
    Phase,
    Planned,
    index_of,
    observation,
    seed_of,
)
from tuner.stages.start import calibrated_arms, first_points

_PRUNE_AT = 0.75  # of a run: at half of it, good learning rates just under the cliff look bad
_PRUNE_AFTER = 5  # completed trials of the same arm and length to compare with
SCREEN_EVALUATIONS = 4  # of a short run: enough for _PRUNE_AT


def lookback(spec: StudySpec) -> int:
    """How many trials an arm may propose before the earliest of them has a result.

    Just enough to keep all slots busy; fixed by the file so that proposals do not depend on timing.
    """
    return max(0, math.ceil((spec.run.slots or 1) / len(spec.arms)) - 1)


def _interleaved(
    spec: StudySpec,
    purpose: int,
    counts: dict[str, int],
    known: Callable[[ArmSection], list[Point]],
    first: int = 0,
) -> list[Planned]:
    """Place i of every arm has the same seed: same initial weights and data order, fairer arms.

    The first places of an arm have its `known` points, which need no sampler.
    """
    points = {arm.name: known(arm) for arm in spec.arms}
    return [
        Planned(
            arm.name,
            seed_of(spec, purpose, first + i),
            first + i,
            points[arm.name][i] if i < len(points[arm.name]) else None,
        )
        for i in range(max(counts.values(), default=0))
        for arm in spec.arms
        if i < counts[arm.name]
    ]


def _screen(spec: StudySpec, history: History) -> list[Planned]:
    if not spec.budget.screens:
        return []
    counts = {a.name: spec.trials_of(a.name) for a in spec.arms}
    return _interleaved(spec, TRYING, counts, lambda arm: _start(spec, history, arm, short=True))


def _explore(spec: StudySpec, history: History) -> list[Planned]:
    def known(arm: ArmSection) -> list[Point]:
        if spec.budget.screens:
            return _promoted(spec, history, arm)
        return _start(spec, history, arm, short=False)

    counts = {a.name: full_trials(spec, a.name) for a in spec.arms}
    return _interleaved(spec, EXPLORING, counts, known)


def _extend(spec: StudySpec, history: History) -> list[Planned]:
    """When one arm's bound moved, every arm gets the same share of further trials."""
    if not any(widenings(spec, history, a.name) for a in spec.arms):
        return []
    extra = {a.name: extra_trials(spec, a.name) for a in spec.arms}
    return _interleaved(
        spec,
        EXPLORING,
        extra,
        lambda arm: beyond(spec, history, arm.name),
        first=_first_part(spec),
    )


def _first_part(spec: StudySpec) -> int:
    """The index at which the second part of exploration begins."""
    return max(full_trials(spec, a.name) for a in spec.arms)


def _is_short(spec: StudySpec, place: Planned) -> bool:
    return place.seed < seed_of(spec, EXPLORING, 0)


def _completed(
    spec: StudySpec, arm: ArmSection, space: Space, seen: Iterable[Observation]
) -> list[Observation]:
    """Observations with a value on every axis: the arm's default where a point has none."""
    default = default_point(spec, arm)
    return [
        replace(o, point={d.name: o.point.get(d.name, default[d.name]) for d in space})
        for o in seen
    ]


def _promoted(spec: StudySpec, history: History, arm: ArmSection) -> list[Point]:
    """The screened configurations that are run at full length."""
    space = arm_space(spec, arm, history.curve(arm.name))
    seen = [*_first(history, arm.name), *_short(history, arm.name)]
    count = promoted(spec, arm.name)
    return promising(space, _completed(spec, arm, space, seen), spec.study.direction, count)


def _start(spec: StudySpec, history: History, arm: ArmSection, *, short: bool) -> list[Point]:
    """The points with which an arm's search begins; calibration may have run the first of them."""
    points = first_points(spec, history, arm)
    calibrated = spec.budget.calibrate_seeds and arm in calibrated_arms(spec)
    return points[1:] if calibrated and not short else points


def _proposed(
    spec: StudySpec,
    history: History,
    place: Planned,
    mine: dict[int, Trial],
    known: Sequence[Observation],
    begin: int,
    bounds: Bounds,
) -> Point | None:
    """The sampler's point for a place whose arm has `mine` so far; None while it must wait.

    The quasi-random start begins at place `begin`.
    """
    arm = spec.arm(place.arm)
    earlier = [i for i in places_before(spec, history, place) if i < place.index]
    seen_until = len(earlier) - lookback(spec)
    if any(i not in mine for i in earlier):
        return None
    if any(mine[i].state in OPEN for i in earlier[: max(0, seen_until)]):
        return None
    space = arm_space(spec, arm, history.curve(arm.name), bounds)
    visible = [mine[i] for i in earlier[: max(0, seen_until)]]
    pending = [mine[i] for i in earlier[max(0, seen_until) :]]
    return propose(
        space,
        _completed(spec, arm, space, [*known, *map(observation, visible)]),
        [o.point for o in _completed(spec, arm, space, map(observation, pending))],
        spec.study.direction,
        index=len(earlier) - begin,
        startup=max(4, min(8, spec.trials_of(arm.name) * 2 // 5)),
        seed=spec.study.seed * 1_009 + spec.arms.index(arm),
        length=spec.budget.screen_length if _is_short(spec, place) else 1.0,
    )


def places_before(spec: StudySpec, history: History, place: Planned) -> list[int]:
    """The indices of an arm's places of the same stage that come before a place."""
    if _is_short(spec, place):
        return list(range(place.index))
    mine, second = full_trials(spec, place.arm), _first_part(spec)
    return [i for i in range(place.index) if i < mine or i >= second]


def _first(history: History, arm: str) -> list[Observation]:
    """What the full runs before the search say to the sampler."""
    return [observation(t) for t in history.first_runs(arm) if t.state not in OPEN]


def _screen_point(spec: StudySpec, history: History, place: Planned) -> Point | None:
    if place.point is not None:
        return place.point
    mine = {index_of(t): t for t in history.of("screen", place.arm)}
    begin = len(_start(spec, history, spec.arm(place.arm), short=True))
    return _proposed(spec, history, place, mine, [], begin, NOT_WIDENED)


def _explore_point(spec: StudySpec, history: History, place: Planned) -> Point | None:
    """Of the first part of exploration and of the second, whose box may be wider."""
    if place.point is not None:
        return place.point
    mine = {index_of(t): t for t in history.of("explore", place.arm)}
    bounds = widened(spec, history, place.arm)
    known = _first(history, place.arm)
    begin = len(_start(spec, history, spec.arm(place.arm), short=False))
    if spec.budget.screens:
        known += _short(history, place.arm)
        begin = -spec.trials_of(place.arm)  # the quasi-random part was the screening
    return _proposed(spec, history, place, mine, known, begin, bounds)


def _short(history: History, arm: str) -> list[Observation]:
    """The screening runs; the sampler's model knows that they were short."""
    return [observation(t) for t in history.of("screen", arm) if t.state not in OPEN]


def _rules(spec: StudySpec, history: History, place: Planned) -> tuple[StopRule, ...]:
    """Only for a point that waited for results: others may start at any time, so their rules would
    depend on timing; and they are the most promising ones.
    """
    if not spec.run.prune or place.point is not None:
        return ()
    short = _is_short(spec, place)
    visible = [
        history.evaluations.get(t.number, ())
        for t in history.of("screen" if short else "explore", place.arm)
        if index_of(t) < place.index - lookback(spec) and t.state == "completed"
    ]
    return stop_rules(
        visible,
        spec.study.direction,
        evaluations_of(spec, spec.budget.screen_length if short else 1.0),
        longest_warmup(spec, spec.arm(place.arm)),
    )


def evaluations_of(spec: StudySpec, length: float) -> int:
    """Validation passes of a run of that length."""
    count = spec.budget.evaluations
    return count if length == 1 else min(count, SCREEN_EVALUATIONS)


def longest_warmup(spec: StudySpec, arm: ArmSection) -> float:
    """The largest share of a run in which the learning rate may still rise."""
    axes = arm_space(spec, arm, None)
    return max([warmup_of(arm), *(d.high for d in axes if d.name == "warmup")])


def stop_rules(
    evaluations: Sequence[Sequence[float]], direction: Direction, count: int, warmup: float = 0.0
) -> tuple[StopRule, ...]:
    """Early stopping of an exploration trial: worse than all that ended well were at that moment.

    `evaluations` hold the metric at each of the `count` evaluations of the arm's completed trials
    of the same length that the new trial may see, so that a rerun gets the same rules. Those that
    ended well are their better half, and the worst that one of them was at a fraction of its own
    schedule is what a new trial must reach there, after the `warmup` share of it. So the study
    itself says what an unfinished run tells of its end: where good runs look bad until the learning
    rate falls, nothing is stopped, and of runs as good as the better half hardly any ever is.
    Trials are never compared across arms or schedules.
    """
    number = math.ceil(_PRUNE_AT * count)
    ended = [run for run in evaluations if len(run) == count]
    if len(ended) < _PRUNE_AFTER or number == count or number / count <= warmup:
        return ()
    ended.sort(key=lambda run: run[-1], reverse=direction == "maximize")
    good = ended[: math.ceil(len(ended) / 2)]
    worst = max if direction == "minimize" else min
    return (StopRule(evaluation=number, threshold=worst(run[number - 1] for run in good)),)


SCREEN = Phase("screen", _screen, _screen_point, _rules, lambda spec: spec.budget.screen_length)
EXPLORE = Phase("explore", _explore, _explore_point, _rules)
EXTEND = Phase("explore", _extend, _explore_point, _rules)
