"""From a study's rows to the comparison of its arms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from tuner.compare.verdicts import ArmScores, Comparison, compare
from tuner.errors import NoCompletedTrialError
from tuner.records import LrCurve, Trial
from tuner.spec import StudySpec
from tuner.stages import (
    OPEN,
    History,
    as_explored,
    better_first,
    candidates,
    full_trials,
    judged_trials,
    looks,
    unresolved_bounds,
)


def arm_scores(spec: StudySpec, history: History, arm: str) -> ArmScores:
    """The judged scores of an arm: those of seeds that took no part in any choice."""
    section = spec.arm(arm)
    judged = judged_trials(spec, history, arm)
    explored = better_first(spec, history.of("explore", arm))
    return ArmScores(
        name=arm,
        optimizer=section.optimizer,
        schedule=section.schedule,
        params=judged[0].params if judged else (explored[0].params if explored else {}),
        seeds=[t.seed for t in judged],
        scores=[t.value for t in judged],
        explored=as_explored(spec, arm, len(explored)),
        explored_values=[t.value for t in explored if t.value is not None],
        flags=unresolved_bounds(spec, history, arm),
    )


def compare_study(
    spec: StudySpec, trials: Sequence[Trial], curves: Mapping[int, LrCurve]
) -> Comparison:
    """Compare the arms of a study by what it has so far; the same rows give the same answer.

    An arm whose every trial diverged or failed gets a missing score for each judged seed, which
    counts as the worst; in a study under way, arms that have no score yet are left out.

    Raises:
        NoCompletedTrialError: there is no score to judge by.
    """
    history = History({t.number: t for t in trials}, curves)
    arms = [arm_scores(spec, history, arm.name) for arm in spec.arms]
    if not any(score is not None for arm in arms for score in arm.scores):
        raise NoCompletedTrialError(
            f"study {spec.study.name!r} has no score on fresh seeds to compare yet"
            if any(t.state in OPEN for t in trials) or not trials
            else f"study {spec.study.name!r} has no completed trial to compare"
        )
    seeds = max((arm.seeds for arm in arms), key=len)
    hopeless = {arm.name for arm in arms if _without_candidate(spec, history, arm.name)}
    judged = [
        arm.model_copy(update={"seeds": seeds, "scores": [None] * len(seeds)})
        if arm.name in hopeless
        else arm
        for arm in arms
        if arm.scores or arm.name in hopeless
    ]
    return compare(
        judged,
        spec.study.direction,
        metric=spec.study.metric,
        margin=spec.study.margin,
        looks=max(1, len(looks(spec))),
        rng=np.random.default_rng(spec.study.seed),
    )


def _without_candidate(spec: StudySpec, history: History, arm: str) -> bool:
    explored = history.of("explore", arm)
    over = len(explored) >= full_trials(spec, arm) and all(t.state not in OPEN for t in explored)
    return over and not candidates(spec, history, arm)
