"""What older studies know about the arms of a new one: their best configurations and LR boxes.

Arms match by optimizer and wrapper; those with the same schedule come first. Values are moved to
the new study's reference batch size and clipped to its choices, which may have changed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from tuner.space import Point, default_point, lr_at, point_of
from tuner.spec import ArmSection, StudySpec, WarmArm
from tuner.stages.bounds import final_box
from tuner.stages.history import OPEN, History
from tuner.stages.judge import candidates, chosen_point

_POINTS = 3  # taken from each matching arm


def warm_arms(spec: StudySpec, older: Sequence[tuple[StudySpec, History]]) -> dict[str, WarmArm]:
    """What the older studies, most important first, know about each arm; arms without are left out.

    Pure: the caller keeps the result in the new study's row, so that a resumed study is the same
    whatever has become of the older ones.
    """
    found: dict[str, WarmArm] = {}
    for arm in spec.arms:
        points: list[Point] = []
        box, source = None, ""
        for old, history, match in _matches(arm, older):
            known = list(_best(spec, arm, old, history, match))
            points += [p for p in known if p not in points]
            box = box or _lr_box(spec, arm, old, history, match)
            source = source or old.study.name
        if points or box:
            found[arm.name] = WarmArm(
                study=source, points=tuple(points), lr=_around(box, points) if box else None
            )
    return found


def _matches(
    arm: ArmSection, older: Sequence[tuple[StudySpec, History]]
) -> Iterator[tuple[StudySpec, History, ArmSection]]:
    """Arms with the same optimizer and wrapper, those with the same schedule first."""
    same = [
        (old, history, match)
        for old, history in older
        for match in old.arms
        if (match.optimizer, match.wrapper) == (arm.optimizer, arm.wrapper)
    ]
    yield from (each for each in same if each[2].schedule == arm.schedule)
    yield from (each for each in same if each[2].schedule != arm.schedule)


def _best(
    spec: StudySpec, arm: ArmSection, old: StudySpec, history: History, match: ArmSection
) -> Iterator[Point]:
    """The configurations of a matching arm, the chosen one first, as points of the new study."""
    chosen = chosen_point(old, history, match.name)
    best = [*([chosen] if chosen else []), *candidates(old, history, match.name)]
    distinct = [p for k, p in enumerate(best) if p not in best[:k]][:_POINTS]
    used = {tuple(sorted(t.point.items())): t.params for t in history.trials.values()}
    for point in distinct:
        params = used[tuple(sorted(point.items()))]
        yield {**default_point(spec, arm), **point_of(spec, arm, params)}


def _lr_box(
    spec: StudySpec, arm: ArmSection, old: StudySpec, history: History, match: ArmSection
) -> tuple[float, float] | None:
    """The box that a matching arm has searched, at the new reference batch size."""
    tested = history.curve(match.name) is not None or match.name in old.warm
    explored = any(t.state not in OPEN for t in history.of("explore", match.name))
    if not (tested or explored):
        return None
    axis = next(d for d in final_box(old, history, match.name) if d.name == "lr")
    if axis.low >= axis.high:
        return None
    sizes = (spec.box(arm).reference, old.box(match).reference)
    return (lr_at(arm, axis.low, *sizes), lr_at(arm, axis.high, *sizes))


def _around(box: tuple[float, float], points: Sequence[Mapping[str, float]]) -> tuple[float, float]:
    """The box, wide enough for the configurations that come with it."""
    lrs = [p["lr"] for p in points]
    return (min([box[0], *lrs]), max([box[1], *lrs]))
