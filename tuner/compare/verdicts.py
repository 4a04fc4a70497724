"""From the scores of fresh seeds to a verdict per arm and one sentence that can be signed.

How it is decided (error rates and power are measured in tests/compare/test_calibration.py):

- Common seeds are paired. All pairs of arms are tested by joint sign flips with the step-down
  maximum correction (`statistics.paired_tests`): at most alpha of the studies of equal arms call
  any arm best or worse, which of them happens to lead included.
- "best" is an arm whose uncorrected test against EVERY other arm holds. That needs no further
  correction: with equal arms the winner rarely beats all (Gutmann and Maymin, Ann. Stat. 1987).
- Pairs with fewer common seeds than a permutation test needs are tested by a t test with a floor
  under its deviation and Holm; when both kinds of pairs occur, each gets half of alpha.
- Intervals are Student's: see `statistics.t_interval`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from pydantic import Field

from tuner.compare import statistics as st
from tuner.compare import wording
from tuner.records import Direction, Record

Verdict = Literal["best", "contender", "equivalent", "worse", "under-explored"]

FEWEST_TRIALS = 0.5  # of the arm with the most completed trials; below it: under-explored


class ArmScores(Record):
    """The chosen configuration of one arm and its scores on fresh seeds.

    Attributes:
        scores: the metric of each seed; None = diverged, which counts as the worst and is kept.
        explored: completed trials of the search that chose the configuration; None = unknown.
        explored_values: their scores; when every arm gives them, P(best) covers luck in the search.
        flags: reasons why the search of this arm is not finished, such as "at-bound-lr".
    """

    name: str
    optimizer: str
    schedule: str
    params: dict[str, Any] = Field(default_factory=dict)
    seeds: list[int]
    scores: list[float | None]
    explored: int | None = None
    explored_values: list[float] = Field(default_factory=list)
    flags: list[str] = Field(default_factory=list)


class ArmResult(Record):
    """What is said about one arm. Differences are "this arm minus the leader" in metric units.

    Attributes:
        mean, ci_low, ci_high: over the seeds, diverged ones as the worst; 95 % for alpha 0.05.
        p_value: corrected, against the leader (for the leader: against its closest rival).
        seeds_needed: further common seeds until a difference like the observed one is likely to
            be decided; above `statistics.SEEDS_CAP`: more than that; None when decided.
    """

    name: str
    optimizer: str
    schedule: str
    params: dict[str, Any]
    seeds: list[int]
    scores: list[float | None]
    explored: int | None
    flags: list[str]
    mean: float
    ci_low: float | None
    ci_high: float | None
    p_best: float
    verdict: Verdict
    p_value: float | None
    difference: float | None
    difference_low: float | None
    difference_high: float | None
    seeds_needed: int | None
    note: str


class Comparison(Record):
    """All arms, best first, and the answer."""

    metric: str
    direction: Direction
    alpha: float
    margin: float | None  # differences below it count as none; None when unknown
    margin_given: bool  # by the user; otherwise the pooled seed deviation
    arms: list[ArmResult]
    expected_regret: float | None  # of taking the leader, in metric units
    method: str
    answer: str


class _Tests(NamedTuple):
    """Symmetric (arms, arms) matrices over the pairs."""

    single: st.Array  # p value of the pair alone
    adjusted: st.Array  # corrected for all pairs
    method: str
    done: bool  # False when no two seeds are common


def _check(arms: Sequence[ArmScores]) -> None:
    if not arms:
        raise ValueError("nothing to compare: no arm")
    names = [arm.name for arm in arms]
    if len(set(names)) < len(names):
        raise ValueError(f"arm names must differ, got {names}")
    for arm in arms:
        if not arm.scores or len(arm.scores) != len(arm.seeds):
            raise ValueError(
                f"arm {arm.name!r} has {len(arm.seeds)} seeds and {len(arm.scores)} scores; "
                "allowed: one score for each seed, at least one"
            )
        if len(set(arm.seeds)) < len(arm.seeds):
            raise ValueError(f"arm {arm.name!r} has a seed twice")


def _matrix(arms: Sequence[ArmScores], direction: Direction) -> st.Array:
    """Scores as (arms, seeds), more is better, NaN where an arm lacks a seed."""
    columns = {seed: c for c, seed in enumerate(sorted({s for arm in arms for s in arm.seeds}))}
    matrix = np.full((len(arms), len(columns)), np.nan)
    for row, (arm, scores) in enumerate(
        zip(arms, st.finite_worst([a.scores for a in arms], direction), strict=True)
    ):
        matrix[row, [columns[seed] for seed in arm.seeds]] = scores
    return matrix if direction == "maximize" else -matrix


def _ranking_means(scores: st.Array) -> st.Array:
    """Arm means free of which seeds an arm happened to run: least squares of arm + seed."""
    present = np.isfinite(scores)
    if present.all():
        return np.asarray(scores.mean(axis=1))
    arm, seed = np.nonzero(present)
    design = np.zeros((arm.size, sum(scores.shape)))
    design[np.arange(arm.size), arm] = 1
    design[np.arange(arm.size), scores.shape[0] + seed] = 1
    fit = np.linalg.lstsq(design, scores[present], rcond=None)[0]
    return np.asarray(fit[: scores.shape[0]])


def _pooled_sd(scores: st.Array) -> float | None:
    """Standard deviation over seeds, pooled over the arms with at least two."""
    repeated = scores[np.isfinite(scores).sum(axis=1) >= 2]
    if not len(repeated):
        return None
    squares = np.nansum((repeated - np.nanmean(repeated, axis=1, keepdims=True)) ** 2)
    return float(np.sqrt(squares / (np.isfinite(repeated).sum() - len(repeated))))


def _common(scores: st.Array, i: int, j: int) -> st.Array:
    d = scores[i] - scores[j]
    return np.asarray(d[np.isfinite(d)])


def _test_pairs(
    scores: st.Array, alpha: float, sd: float | None, rng: np.random.Generator
) -> _Tests:
    arms = len(scores)
    single, adjusted = np.ones((arms, arms)), np.ones((arms, arms))
    if arms < 2 or sd is None:
        return _Tests(single, adjusted, "no test: two common seeds are needed", False)
    tests = st.paired_tests(scores, rng)
    enough = tests.seeds >= st.fewest_seeds(alpha)
    p_single, p_adjusted = tests.p_value.copy(), tests.adjusted.copy()
    if (few := ~enough).any():
        floor = sd * math.sqrt(2)
        p_single[few] = [
            st.few_seeds_test(_common(scores, i, j), floor)
            for (i, j), lacks in zip(tests.pairs, few, strict=True)
            if lacks
        ]
        p_adjusted[few] = st.holm(p_single[few])
    method = "paired sign-flip tests of all pairs, step-down max-T correction"
    if not enough.any():
        method = "paired t tests with a pooled floor, Holm correction"
    elif not enough.all():
        p_single[few], p_adjusted = p_adjusted[few], np.minimum(1.0, 2 * p_adjusted)
        method += "; pairs with too few common seeds by t tests with Holm; half of alpha each"
    for (i, j), alone, corrected in zip(tests.pairs, p_single, p_adjusted, strict=True):
        single[i, j] = single[j, i] = alone
        adjusted[i, j] = adjusted[j, i] = max(alone, corrected)
    return _Tests(single, adjusted, method, True)


def _reasons(arm: ArmScores, most_explored: int) -> list[str]:
    """Why the search of this arm is unfinished, in words."""
    reasons = [wording.flag(flag) for flag in arm.flags]
    if arm.explored is not None and arm.explored < FEWEST_TRIALS * most_explored:
        reasons.append(f"only {arm.explored} completed trials, another arm has {most_explored}")
    return reasons


class _Evidence(NamedTuple):
    """Everything that the verdict of one arm depends on; indices are those of `arms`."""

    arms: Sequence[ArmScores]
    scores: st.Array
    order: list[int]  # best first
    tests: _Tests
    beats_all: float  # the leader's test against every other arm; what it shows holds for each
    equivalence: dict[int, float]  # corrected TOST against the leader
    shares: st.Array  # P(best)
    flip: bool  # scores were negated, since the metric is minimized
    margin_given: bool
    alpha: float


def _verdict(k: int, e: _Evidence, unfinished: bool, worse: bool) -> Verdict:
    if k == e.order[0]:
        return "best" if e.beats_all <= e.alpha else "contender"
    if unfinished:
        return "under-explored"
    equivalent = None not in e.arms[k].scores and e.equivalence[k] <= e.alpha
    if worse and not (equivalent and e.margin_given):
        return "worse"
    return "equivalent" if equivalent else "contender"


def _result(k: int, e: _Evidence) -> ArmResult:
    arm, leader = e.arms[k], e.order[0]
    explored = max((a.explored or 0 for a in e.arms), default=0)
    reasons = _reasons(arm, explored)
    corrected = min(float(e.tests.adjusted[leader, k]), e.beats_all)
    beaten_by = [r for r in e.order[: e.order.index(k)] if e.tests.adjusted[r, k] <= e.alpha]
    worse = k != leader and (corrected <= e.alpha or bool(beaten_by))
    verdict = _verdict(k, e, bool(reasons), worse)
    sign = -1.0 if e.flip else 1.0
    own = e.scores[k][np.isfinite(e.scores[k])]
    low, high = wording.ends(st.t_interval(own, 1 - e.alpha), e.flip)
    common = _common(e.scores, k, leader)
    gap = None if k == leader else st.t_interval(common, 1 - e.alpha)
    gap_low, gap_high = wording.ends(gap, e.flip)
    open_question = k != leader and verdict in ("contender", "under-explored")
    p_value = e.beats_all if k == leader else corrected
    return ArmResult(
        **arm.model_dump(exclude={"explored_values"}),
        mean=sign * float(own.mean()),
        ci_low=low,
        ci_high=high,
        p_best=float(e.shares[k]),
        verdict=verdict,
        p_value=p_value if len(e.arms) > 1 and e.tests.done else None,
        difference=sign * float(common.mean()) if k != leader and common.size else None,
        difference_low=gap_low,
        difference_high=gap_high,
        seeds_needed=_seeds_needed(common, e.alpha) if open_question and not worse else None,
        note=wording.note(
            reasons=reasons,
            diverged=arm.scores.count(None),
            seeds=len(arm.scores),
            measured_worse=worse and verdict in ("under-explored", "equivalent"),
            beaten_by=[e.arms[r].name for r in beaten_by] if corrected > e.alpha else [],
        ),
    )


def _quality(
    arms: Sequence[ArmScores], scores: st.Array, direction: Direction, rng: np.random.Generator
) -> st.Array:
    """Draws of the arms' true means; luck in the search included where every arm tells it."""
    sign = 1.0 if direction == "maximize" else -1.0
    explored = [sign * np.array(arm.explored_values) for arm in arms]
    return st.quality_draws(scores, rng, explored if all(map(len, explored)) else None)


def compare(
    arms: Sequence[ArmScores],
    direction: Direction,
    *,
    rng: np.random.Generator,
    margin: float | None = None,
    alpha: float = 0.05,
    metric: str = "metric",
) -> Comparison:
    """Judge arms by the scores of fresh seeds; never better than "contender" on one common seed.

    `margin` is the difference in metric units below which the user does not care; without it the
    pooled deviation over seeds is used, and then "worse" goes before "equivalent".
    Raises ValueError for a NaN or infinite score, repeated arms or seeds, or no arm.
    """
    _check(arms)
    scores = _matrix(arms, direction)
    sd = _pooled_sd(scores)
    order = [int(k) for k in np.argsort(-_ranking_means(scores), kind="stable")]
    leader, rivals = order[0], order[1:]
    tests = _test_pairs(scores, alpha, sd, rng)
    quality = None if sd is None else _quality(arms, scores, direction, rng)
    limit = margin if margin is not None else sd
    tost = st.holm([st.tost(_common(scores, k, leader), limit or 0.0) for k in rivals])
    evidence = _Evidence(
        arms=arms,
        scores=scores,
        order=order,
        tests=tests,
        beats_all=max((float(tests.single[leader, k]) for k in rivals), default=1.0),
        equivalence=dict(zip(rivals, map(float, tost), strict=True)),
        shares=np.full(len(arms), 1 / len(arms)) if quality is None else st.p_best(quality),
        flip=direction == "minimize",
        margin_given=margin is not None,
        alpha=alpha,
    )
    comparison = Comparison(
        metric=metric,
        direction=direction,
        alpha=alpha,
        margin=limit,
        margin_given=margin is not None,
        arms=[_result(k, evidence) for k in order],
        expected_regret=None if quality is None else st.expected_regret(quality, leader),
        method=tests.method,
        answer="",
    )
    return comparison.model_copy(update={"answer": wording.answer(comparison)})


def _seeds_needed(common: st.Array, alpha: float) -> int:
    """Further common seeds to decide a difference like the observed one with 80 % power."""
    fewest = st.fewest_seeds(alpha)
    if common.size < 2:
        return fewest - int(common.size)
    deviation = float(common.std(ddof=1))
    effect = abs(float(common.mean())) / deviation if deviation else 0.0
    needed = st.seeds_for_effect(effect, alpha)
    if needed > st.SEEDS_CAP:
        return needed
    return max(1, needed - int(common.size))


def comparison_json(study_name: str, metric: str, comparison: Comparison) -> dict[str, Any]:
    """The comparison as finite JSON: arms best first; an unknown number is null."""
    arms = comparison.model_dump(mode="json")["arms"]
    return {
        "study": study_name,
        "metric": metric,
        "direction": comparison.direction,
        "alpha": comparison.alpha,
        "margin": comparison.margin,
        "expected_regret": comparison.expected_regret,
        "method": comparison.method,
        "arms": arms,
        "answer": comparison.answer,
    }
