"""From a study's rows to the comparison of its arms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from tuner.compare.inclusion import ArmSetup, inclusion_caveats
from tuner.compare.verdicts import ArmScores, Comparison, compare
from tuner.errors import NoCompletedTrialError
from tuner.records import LrCurve, Trial
from tuner.spec import ArmSection, StudySpec
from tuner.stages import (
    OPEN,
    History,
    as_explored,
    better_first,
    candidates,
    chosen_point,
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
    points = [t.point for t in explored]
    confirmed: dict[int, list[float | None]] = {}
    for trial in history.of("confirm", arm):
        if trial.state not in OPEN and trial.point in points:
            confirmed.setdefault(points.index(trial.point), []).append(trial.value)
    chosen = chosen_point(spec, history, arm)
    return ArmScores(
        name=arm,
        optimizer=section.optimizer,
        schedule=section.schedule,
        params=judged[0].params if judged else (explored[0].params if explored else {}),
        seeds=[t.seed for t in judged],
        scores=[t.value for t in judged],
        explored=as_explored(spec, arm, len(explored)),
        explored_values=[t.value for t in explored if t.value is not None],
        confirmed=confirmed,
        chosen=points.index(chosen) if chosen in points else None,
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
            else f"study {spec.study.name!r} has no completed trial to compare{_why(trials)}"
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
    comparison = compare(
        judged,
        spec.study.direction,
        metric=spec.study.metric,
        margin=spec.study.margin,
        looks=max(1, len(looks(spec))),
        rng=np.random.default_rng(spec.study.seed),
    )
    caveats = inclusion_caveats([_setup(arm) for arm in spec.arms], comparison)
    return comparison.model_copy(update={"caveats": caveats})


def _why(trials: Sequence[Trial]) -> str:
    failures = [t.failure.message for t in trials if t.failure]
    return f"; the last of {len(failures)} that failed: {failures[-1]}" if failures else ""


def _setup(arm: ArmSection) -> ArmSetup:
    return ArmSetup(
        name=arm.name,
        optimizer=arm.optimizer,
        schedule=arm.schedule,
        momentum="momentum" in arm.search or bool(arm.optimizer_args.get("momentum")),
        fixed=frozenset(arm.optimizer_args),
        searched=frozenset(arm.search),
    )


def _without_candidate(spec: StudySpec, history: History, arm: str) -> bool:
    explored = history.of("explore", arm)
    over = len(explored) >= full_trials(spec, arm) and all(t.state not in OPEN for t in explored)
    return over and not candidates(spec, history, arm)
