"""What the scores of fresh seeds show: who leads, who is shown to be worse, who equivalent.

How it is decided (error rates and power are measured in tests/compare/test_calibration.py):

- Common seeds are paired. All pairs of arms are tested by joint sign flips with the step-down
  maximum correction (`statistics.paired_tests`): at most alpha of the studies of equal arms call
  any arm best or worse, which of them happens to lead included.
- "best" is an arm whose uncorrected test against EVERY other arm holds. That needs no further
  correction: with equal arms the winner rarely beats all (Gutmann and Maymin, Ann. Stat. 1987).
- Pairs with fewer common seeds than a permutation test needs are tested by a t test with a floor
  under its deviation and Holm; when both kinds of pairs occur, each gets half of alpha.
- Scores that were looked at several times pay for it: see `looks`. An arm that stopped early is
  judged by the look at which it stopped, on the seeds and among the arms of that time.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from tuner.compare import statistics as st
from tuner.compare.looks import nominal_level, overall_p
from tuner.records import Direction

Bools = npt.NDArray[np.bool_]


def score_matrix(scores: Sequence[Mapping[int, float | None]], direction: Direction) -> st.Array:
    """Scores as (arms, seeds), more is better, seeds rising, NaN where an arm lacks a seed.

    `scores` holds, for each arm, seed -> metric, None = diverged: a finite worst score.
    Raises ValueError for NaN or infinity, and when every run diverged.
    """
    columns = {seed: c for c, seed in enumerate(sorted({s for arm in scores for s in arm}))}
    filled = st.finite_worst([list(arm.values()) for arm in scores], direction)
    matrix = np.full((len(scores), len(columns)), np.nan)
    for row, (arm, values) in enumerate(zip(scores, filled, strict=True)):
        matrix[row, [columns[seed] for seed in arm]] = values
    return matrix if direction == "maximize" else -matrix


def ranking_means(scores: st.Array) -> st.Array:
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


def pooled_sd(scores: st.Array) -> float | None:
    """Standard deviation over seeds, pooled over the arms with at least two."""
    repeated = scores[np.isfinite(scores).sum(axis=1) >= 2]
    if not len(repeated):
        return None
    squares = np.nansum((repeated - np.nanmean(repeated, axis=1, keepdims=True)) ** 2)
    return float(np.sqrt(squares / (np.isfinite(repeated).sum() - len(repeated))))


def common_differences(scores: st.Array, i: int, j: int) -> st.Array:
    """Arm i minus arm j on the seeds that both ran."""
    d = scores[i] - scores[j]
    return np.asarray(d[np.isfinite(d)])


@dataclass(frozen=True)
class PairTests:
    """Symmetric (arms, arms) matrices over the pairs; p values count all looks."""

    single: st.Array  # p value of the pair alone
    adjusted: st.Array  # corrected for all pairs
    method: str
    done: bool = True  # False when no two seeds are common
    looks: int = 1


def _test_once(
    scores: st.Array, level: float, sd: float, rng: np.random.Generator
) -> tuple[st.Array, st.Array, str]:
    """Symmetric p values of all pairs at one look, alone and corrected, and the method."""
    tests = st.paired_tests(scores, rng)
    enough = tests.seeds >= st.fewest_seeds(level)
    p_single, p_adjusted = tests.p_value.copy(), tests.adjusted.copy()
    if (few := ~enough).any():
        p_single[few] = [
            st.few_seeds_test(common_differences(scores, i, j), sd * math.sqrt(2))
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
    single, adjusted = np.ones((2, len(scores), len(scores)))
    for (i, j), alone, corrected in zip(tests.pairs, p_single, p_adjusted, strict=True):
        single[i, j] = single[j, i] = alone
        adjusted[i, j] = adjusted[j, i] = max(alone, corrected)
    return single, adjusted, method


def pair_tests(
    scores: st.Array, alpha: float, rng: np.random.Generator, looks: int = 1
) -> PairTests:
    """Test all pairs, each at the last look at which both arms still got seeds.

    Arms with fewer seeds stopped at an earlier look, so different numbers of seeds count as
    several looks even when `looks`, the number planned, says otherwise.
    """
    arms = len(scores)
    counts = np.isfinite(scores).sum(axis=1)
    sd = pooled_sd(scores)
    single, adjusted = np.ones((arms, arms)), np.ones((arms, arms))
    if arms < 2 or sd is None:
        return PairTests(single, adjusted, "no test: two common seeds are needed", done=False)
    stages = sorted({int(n) for n in np.sort(counts)[:-1]})  # the last arm alone is no family
    looks = max(looks, len(stages))
    level = nominal_level(looks, alpha, arms)
    base = int(rng.integers(2**63))
    method = ""
    for count in stages:
        family = np.flatnonzero(counts >= count)
        seeds = np.isfinite(scores[counts == count]).any(axis=0)
        # The same flips whenever a look is repeated, so that what was decided stays decided.
        flips = np.random.default_rng([base, count])
        once = _test_once(scores[np.ix_(family, np.flatnonzero(seeds))], level, sd, flips)
        place = np.ix_(family, family)
        single[place], adjusted[place], method = once
    if looks > 1:
        method += f"; corrected for {looks} looks"
    return PairTests(
        overall_p(single, looks, arms), overall_p(adjusted, looks, arms), method, looks=looks
    )


@dataclass(frozen=True)
class Evidence:
    """Everything that the verdicts depend on; indices are rows of `scores`."""

    scores: st.Array  # (arms, seeds), more is better
    diverged: Bools  # arms with a diverged seed, which are never called equivalent
    order: list[int]  # best first
    tests: PairTests
    equivalence: dict[int, float]  # corrected TOST against the leader
    margin: float | None  # differences below it count as none; None when unknown
    alpha: float

    @property
    def leader(self) -> int:
        """The arm with the best mean."""
        return self.order[0]

    @cached_property
    def beats_all(self) -> float:
        """P value of the leader against every other arm; what it shows holds for each."""
        return max((float(self.tests.single[self.leader, k]) for k in self.order[1:]), default=1.0)

    def p_worse(self, k: int) -> float:
        """Corrected p value of arm k against the leader."""
        return min(float(self.tests.adjusted[self.leader, k]), self.beats_all)

    def beaten_by(self, k: int) -> list[int]:
        """The arms above k that are shown to be better."""
        above = self.order[: self.order.index(k)]
        return [r for r in above if self.tests.adjusted[r, k] <= self.alpha]

    def is_worse(self, k: int) -> bool:
        """Whether some arm is shown to be better than k."""
        return k != self.leader and (self.p_worse(k) <= self.alpha or bool(self.beaten_by(k)))

    def is_equivalent(self, k: int) -> bool:
        """Whether k is shown to differ from the leader by less than the margin."""
        if k == self.leader or self.diverged[k] or self.diverged[self.leader]:
            return False
        return self.equivalence[k] <= self.alpha

    @property
    def leader_is_best(self) -> bool:
        """Whether the leader is shown to be better than every other arm."""
        if len(self.order) < 2:
            return False
        return self.beats_all <= self.alpha or all(map(self.is_worse, self.order[1:]))


def gather(
    scores: Sequence[Mapping[int, float | None]],
    direction: Direction,
    *,
    rng: np.random.Generator,
    margin: float | None = None,
    alpha: float = 0.05,
    looks: int = 1,
) -> Evidence:
    """Weigh the scores of all arms (seed -> metric, None = diverged).

    `margin` as in `verdicts.compare`; `looks` is how often the scores are looked at in the whole
    study, of which this may be any. Raises ValueError for NaN or infinity, and when every run
    diverged.
    """
    matrix = score_matrix(scores, direction)
    order = [int(k) for k in np.argsort(-ranking_means(matrix), kind="stable")]
    tests = pair_tests(matrix, alpha, rng, looks)
    limit = margin if margin is not None else pooled_sd(matrix)
    rivals = order[1:]
    tost = [st.tost(common_differences(matrix, k, order[0]), limit or 0.0) for k in rivals]
    corrected = overall_p(st.holm(tost), tests.looks, len(matrix))
    return Evidence(
        scores=matrix,
        diverged=np.array([None in arm.values() for arm in scores]),
        order=order,
        tests=tests,
        equivalence=dict(zip(rivals, map(float, corrected), strict=True)),
        margin=limit,
        alpha=alpha,
    )
