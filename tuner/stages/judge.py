"""The last stages: the best configurations on fresh seeds, then the chosen ones until decided."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np

from tuner.compare.sequential import undecided
from tuner.records import Direction, Stage, Trial
from tuner.space import Point
from tuner.spec import StudySpec
from tuner.stages.expected import EXPLORED, expected
from tuner.stages.history import (
    CONFIRMING,
    DECIDING,
    OPEN,
    History,
    Phase,
    Planned,
    given_point,
    seed_of,
    to_the_end,
)

_ALONE = 3  # seeds that judge a single arm


def candidates(spec: StudySpec, history: History, arm: str) -> list[Point]:
    """The arm's most promising points of exploration, its published defaults among them."""
    return [e.point for e in expected(spec, history, arm, EXPLORED)][: spec.budget.confirm_top]


def _confirm(spec: StudySpec, history: History) -> list[Planned]:
    return [
        Planned(arm.name, seed_of(spec, CONFIRMING, s), rank, point)
        for s in range(spec.budget.confirm_seeds)
        for arm in spec.arms
        for rank, point in enumerate(candidates(spec, history, arm.name))
    ]


def chosen_point(spec: StudySpec, history: History, arm: str) -> Point | None:
    """The candidate that is expected to be best, by all that the arm has run; None without one.

    A candidate with a run without a value counts as worse than any other, it is never dropped.
    """
    confirmed = [t.point for t in history.of("confirm", arm)]
    likely = [e.point for e in expected(spec, history, arm) if e.point in confirmed]
    return likely[0] if likely else next(iter(confirmed), None)


def judging_stages(spec: StudySpec) -> tuple[Stage, ...]:
    """The stages whose scores judge the arms: those that chose nothing.

    With one candidate per arm, confirmation chose nothing either. Without `decide_seeds` it is all
    there is, and the report says that its scores are optimistic.
    """
    if spec.budget.decide_seeds == 0:
        return ("confirm",)
    return ("confirm", "decide") if spec.budget.confirm_top == 1 else ("decide",)


def judged_trials(spec: StudySpec, history: History, arm: str) -> list[Trial]:
    """The finished runs that judge an arm, by number."""
    point = chosen_point(spec, history, arm)
    return [
        t
        for stage in judging_stages(spec)
        for t in history.of(stage, arm)
        if t.state not in OPEN and t.point == point
    ]


def looks(spec: StudySpec) -> list[int]:
    """How many decide seeds an arm has at each look at the scores, evenly spaced.

    A single arm has nobody to be told apart from: its few seeds say how good it is.
    """
    seeds = spec.budget.decide_seeds
    if len(spec.arms) == 1:
        return [min(_ALONE, seeds)] if seeds else []
    count = min(spec.budget.decide_looks, seeds)
    return [math.ceil(seeds * (k + 1) / count) for k in range(count)]


def _decide(spec: StudySpec, history: History) -> list[Planned]:
    """Every chosen configuration up to the first look, then those that are still undecided."""
    chosen = {a.name: chosen_point(spec, history, a.name) for a in spec.arms}
    arms = [a.name for a in spec.arms if chosen[a.name] is not None]
    planned: list[Planned] = []
    first = 0
    for number, last in enumerate(looks(spec)):
        if number:
            contenders = still_open(spec, history, number)
            arms = [a for a in arms if a in contenders]
        planned += [
            Planned(arm, seed_of(spec, DECIDING, s), s, chosen[arm])
            for s in range(first, last)
            for arm in arms
        ]
        finished = {(t.arm, t.seed) for t in history.of("decide") if t.state not in OPEN}
        if not all((p.arm, p.seed) in finished for p in planned):
            break  # the next look sees all of this one
        first = last
    return planned


def still_open(spec: StudySpec, history: History, number: int) -> frozenset[str]:
    """The arms that need more seeds after look `number` (from 1); pure."""
    plan = looks(spec)
    limit = seed_of(spec, DECIDING, plan[number - 1])
    scores = tuple(
        (
            arm.name,
            tuple(
                (t.seed, t.value if t.state == "completed" else None)
                for t in judged_trials(spec, history, arm.name)
                if t.stage == "confirm" or t.seed < limit
            ),
        )
        for arm in spec.arms
    )
    study = spec.study
    return _undecided(scores, study.direction, number, len(plan), study.margin, study.seed)


@lru_cache(maxsize=64)  # every plan asks again about every look so far
def _undecided(
    scores: tuple[tuple[str, tuple[tuple[int, float | None], ...]], ...],
    direction: Direction,
    look: int,
    looks: int,
    margin: float | None,
    seed: int,
) -> frozenset[str]:
    return undecided(
        {arm: dict(values) for arm, values in scores},
        direction,
        look=look,
        looks=looks,
        margin=margin,
        rng=np.random.default_rng(seed),
    )


CONFIRM = Phase("confirm", _confirm, given_point, to_the_end)
DECIDE = Phase("decide", _decide, given_point, to_the_end)
