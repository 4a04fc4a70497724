"""Statistics of paired seeds: pure functions on arrays, with `rng` an argument.

Scores are oriented by the caller so that more is better. A matrix of scores is (arms, seeds), and
NaN in it means only one thing: this arm was not run on this seed. No other function accepts NaN.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from tuner.records import Direction

Array = npt.NDArray[np.float64]

EXACT_SEEDS = 12  # all 2^n sign patterns up to here, a random sample of them beyond
BCA_SEEDS = 30  # fewer, and the BCa interval covers less than 93 % even of normal values
RANDOM_FLIPS = 9_999
# What the eight bits of a byte stand for: looked up, random signs take a twentieth of the time.
_SIGNS = 1.0 - 2.0 * np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1)
SEEDS_CAP = 100  # "more than 100 seeds" is the end of every power calculation
_TIES = 1e-9  # of the largest possible statistic: two orders of summation must count as equal


class Interval(NamedTuple):
    """A confidence interval and how it was made."""

    low: float
    high: float
    method: str


def finite_worst(
    scores: Sequence[Sequence[float | None]], direction: Direction
) -> list[list[float]]:
    """Replace None (a diverged run) by a finite score below every score that was reached.

    The replacement lies one range of all reached scores beyond the worst of them, so that a
    divergence costs more than the worst run that finished. `scores` holds one list per arm.
    Raises ValueError for NaN or infinity, and when nothing finished.
    """
    reached = np.array([s for arm in scores for s in arm if s is not None], dtype=float)
    if not np.isfinite(reached).all():
        raise ValueError("a score is NaN or infinite; allowed: finite numbers, None if diverged")
    diverged = any(s is None for arm in scores for s in arm)
    if diverged and not reached.size:
        raise ValueError("every run diverged; at least one finite score is needed")
    worst = 0.0
    if diverged:
        best, last = float(reached.min()), float(reached.max())
        if direction == "maximize":
            best, last = last, best
        worst = last + (last - best)
    return [[worst if s is None else float(s) for s in arm] for arm in scores]


def _finite(values: npt.ArrayLike) -> Array:
    array = np.asarray(values, dtype=float)
    if not np.isfinite(array).all():
        raise ValueError("values must be finite")
    return array


def sign_patterns(n: int, rng: np.random.Generator) -> Array:
    """Rows of ±1, (patterns, n), the first all +1: every one up to `EXACT_SEEDS`, else sampled.

    A pattern and its negation give the same two-sided statistic, so one of each pair is enough.
    """
    if n <= EXACT_SEEDS:
        return _all_patterns(n)
    size = (RANDOM_FLIPS + 1) * n
    octets = rng.integers(0, 256, -(-size // 8), dtype=np.uint8)
    patterns: Array = np.take(_SIGNS, octets, axis=0).reshape(-1)[:size].reshape(-1, n)
    patterns[0] = 1.0
    return patterns


@cache
def _all_patterns(n: int) -> Array:
    """All of `sign_patterns`; every comparison asks for them several times."""
    codes = np.arange(2 ** max(n - 1, 0))[:, None]
    patterns = np.where((codes >> np.arange(n)) & 1 == 1, -1.0, 1.0)
    patterns.setflags(write=False)  # callers share them
    return patterns


class PairTests(NamedTuple):
    """Two-sided sign-flip tests of all pairs; every array is over `pairs`."""

    pairs: list[tuple[int, int]]
    seeds: npt.NDArray[np.int64]  # common seeds
    difference: Array  # mean of first minus second; NaN without a common seed
    p_value: Array  # of this pair alone
    adjusted: Array  # corrected for looking at all pairs


def sign_flip_test(differences: npt.ArrayLike, rng: np.random.Generator) -> float:
    """Two-sided p value of the paired permutation test: the signs of the differences are flipped.

    Exact up to 12 pairs. Without pairs, or when all differences are zero, the p value is 1.
    """
    d = _finite(differences)
    if not d.size:
        return 1.0
    sums = np.abs(sign_patterns(d.size, rng) @ d)
    return float(np.mean(sums >= sums[0] - _TIES * np.abs(d).sum()))


def paired_tests(scores: Array, rng: np.random.Generator) -> PairTests:
    """Test all pairs of arms by joint sign flips with the step-down maximum (max-T) correction.

    A seed's differences of all pairs flip together, which keeps their correlation, so the
    family-wise error is controlled whichever of the arms are truly equal, with more power than
    Holm: its smallest p value, 2/2^n, does not grow with the number of pairs.
    `scores` is (arms, seeds) with NaN where an arm lacks a seed.
    Source: Westfall and Young, Resampling-Based Multiple Testing, 1993, algorithm 4.1.
    """
    arms, n = scores.shape
    pairs = [(i, j) for i in range(arms) for j in range(i + 1, arms)]
    first, second = np.array(pairs, dtype=int).reshape(-1, 2).T
    d = scores[first] - scores[second]
    seeds = np.isfinite(d).sum(axis=1)
    d = np.nan_to_num(d) / np.maximum(seeds, 1)[:, None]
    statistic = np.abs(d @ sign_patterns(n, rng).T)
    observed = statistic[:, :1] - _TIES * np.abs(d).sum(axis=1, keepdims=True)
    order = np.argsort(-observed[:, 0], kind="stable")
    running = np.maximum.accumulate(statistic[order[::-1]])[::-1]
    stepped = np.maximum.accumulate((running >= observed[order]).mean(axis=1))
    adjusted = np.empty(len(pairs))
    adjusted[order] = stepped
    difference = np.where(seeds > 0, d.sum(axis=1), np.nan)
    return PairTests(pairs, seeds, difference, (statistic >= observed).mean(axis=1), adjusted)


def few_seeds_test(differences: npt.ArrayLike, sd_floor: float) -> float:
    """Two-sided p value of a paired t test whose standard deviation is at least `sd_floor`.

    For fewer than six pairs, where no permutation test can reach 0.05. The floor (the pooled
    standard deviation of the study's differences) stops two coarse scores that happen to agree
    from looking like certainty. Without variance or with one pair the p value is 1.
    """
    from scipy.special import stdtr

    d = _finite(differences)
    if d.size < 2 or (sd := max(float(d.std(ddof=1)), sd_floor)) == 0:
        return 1.0
    return float(2 * stdtr(d.size - 1, -abs(d.mean()) / (sd / np.sqrt(d.size))))


def holm(p_values: npt.ArrayLike) -> Array:
    """Holm's step-down correction; controls the family-wise error under any dependence.

    Source: Holm, Scand. J. Stat. 6 (1979). Ours, since scipy has none and statsmodels' collects
    garbage on every call (0.1 s).
    """
    p = _finite(p_values)
    order = np.argsort(p, kind="stable")
    stepped = np.maximum.accumulate(p[order] * np.arange(p.size, 0, -1))
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(1.0, stepped)
    return adjusted


def t_interval(values: npt.ArrayLike, level: float = 0.95) -> Interval | None:
    """Student's interval of the mean; None with fewer than two values.

    Exact for normal values at every n. Of the intervals tried it is the one that covers 95 % at
    8 seeds, where BCa covers about 90 %.
    """
    from scipy.special import stdtrit

    v = _finite(values)
    if v.size < 2:
        return None
    half = stdtrit(v.size - 1, (1 + level) / 2) * v.std(ddof=1) / np.sqrt(v.size)
    return Interval(float(v.mean() - half), float(v.mean() + half), "t")


def bca_interval(
    values: npt.ArrayLike, rng: np.random.Generator, level: float = 0.95, resamples: int = 9_999
) -> Interval | None:
    """Bias-corrected and accelerated bootstrap interval of the mean; None with fewer than two.

    With fewer than 30 values, where it covers too little, and without variance, where it does not
    exist, the Student interval is returned and `method` says so.
    Source: Efron, JASA 82 (1987).
    """
    from scipy import stats

    v = _finite(values)
    if v.size < BCA_SEEDS or np.ptp(v) == 0:
        return t_interval(v, level)
    result = stats.bootstrap(
        (v,), np.mean, confidence_level=level, n_resamples=resamples, method="BCa", rng=rng
    )
    interval = result.confidence_interval
    return Interval(float(interval.low), float(interval.high), "bca")


def sign_flip_interval(
    values: npt.ArrayLike, rng: np.random.Generator, level: float = 0.95
) -> Interval | None:
    """The means that the sign-flip test does not reject; None with fewer than two values.

    Its ends are order statistics of the means of subsets of the values (all of them up to
    `EXACT_SEEDS`, else a random sample): the true mean is equally likely to lie between any two
    neighbours. So one seed out of ten that is far off does not make a difference doubtful in whose
    direction all ten agree, as it does in Student's interval, which is returned where there are
    too few values for the level. Exact for symmetric values.
    Source: Hartigan, JASA 64 (1969).
    """
    v = _finite(values)
    if v.size < fewest_seeds(1 - level):
        return t_interval(v, level)
    subsets = (sign_patterns(v.size + 1, rng)[:, :-1] < 0).astype(float)
    subsets = subsets[subsets.any(axis=1)]
    means = np.sort(subsets @ v / subsets.sum(axis=1))
    beyond = max(1, int((1 - level) / 2 * (means.size + 1) + 1e-9))
    return Interval(float(means[beyond - 1]), float(means[-beyond]), "sign-flip")


def iqm(scores: npt.ArrayLike) -> float:
    """Interquartile mean: a quarter of the scores is cut off at each end.

    Raises ValueError without scores. Source: Agarwal et al., 2108.13264.
    """
    from scipy import stats

    values = _finite(scores)
    if not values.size:
        raise ValueError("the interquartile mean needs at least one score")
    return float(stats.trim_mean(values, 0.25, axis=None))


def probability_of_improvement(a: npt.ArrayLike, b: npt.ArrayLike) -> float:
    """P(A > B) for one run of each, ties counted half: the Mann-Whitney U over its maximum.

    Raises ValueError when either is empty.
    """
    x, y = _finite(a), _finite(b)
    if not x.size or not y.size:
        raise ValueError("P(A > B) needs at least one score of each")
    return float(np.mean(np.sign(x[:, None] - y[None, :]) / 2 + 0.5))


def quality_draws(
    scores: Array, rng: np.random.Generator, losses: Array | None = None, draws: int = 4_000
) -> Array:
    """Plausible true means of the arms, (draws, arms), by a two-level bootstrap.

    Level 1, with `losses` (draws, arms) of `selection.search_loss`: what each arm loses when its
    trials are drawn anew and its configuration is selected again.
    Level 2: seeds, by normal multipliers of the residuals that are common to all arms of a seed,
    with Student's scale; unlike resampling, this is not overconfident with 3 to 10 seeds.
    `scores` is (arms, seeds) with NaN for seeds not run. Raises ValueError when no arm has two
    seeds, or an arm none.
    """
    n = scores.shape[1]
    counts = np.isfinite(scores).sum(axis=1)
    if not counts.size or counts.min() < 1 or counts.max() < 2:
        raise ValueError("every arm needs a seed, and at least one arm needs two")
    draws = draws if losses is None else len(losses)
    means = np.nanmean(scores, axis=1)
    residuals = np.nan_to_num(scores - means[:, None])
    degrees = np.maximum(counts - 1, 1)
    pooled = np.sqrt((residuals**2).sum() / (counts - 1).sum())
    noise = rng.standard_normal((draws, n)) @ residuals.T / np.sqrt(counts * degrees)
    single = counts == 1  # an arm without a spread of its own borrows the pooled one
    noise[:, single] = pooled * rng.standard_normal((draws, int(single.sum())))
    scale = {df: np.sqrt(df / rng.chisquare(df, draws)) for df in sorted(set(degrees.tolist()))}
    quality: Array = means + noise * np.stack([scale[df] for df in degrees.tolist()], axis=1)
    return quality if losses is None else quality - losses


def p_best(draws: Array) -> Array:
    """Share of `draws` in which each arm is the best, ties shared; sums to 1."""
    top = draws >= draws.max(axis=1, keepdims=True)
    share: Array = (top / top.sum(axis=1, keepdims=True)).mean(axis=0)
    return share


def expected_regret(draws: Array, chosen: int) -> float:
    """What following the advice costs on average, in units of the score; never negative."""
    return float(np.mean(draws.max(axis=1) - draws[:, chosen]))


def tost(differences: npt.ArrayLike, margin: float) -> float:
    """P value of "the mean difference lies outside ±margin": small means equivalent (paired TOST).

    Fewer than two pairs prove nothing (1). Without variance the answer is 0 or 1.
    Source: Schuirmann 1987.
    """
    from scipy.special import stdtr

    d = _finite(differences)
    if d.size < 2:
        return 1.0
    if (error := float(d.std(ddof=1)) / np.sqrt(d.size)) == 0:
        return float(abs(d.mean()) >= margin)
    return float(stdtr(d.size - 1, (abs(d.mean()) - margin) / error))


def expected_best_weights(n: int, *, unbiased: bool = True) -> Array:
    """Weights of the n sorted scores, worst first, in the expected best of k = 1..n; (n, n)."""
    from scipy.special import comb

    k = np.arange(1, n + 1)[:, None]
    i = np.arange(1, n + 1)[None, :]
    if unbiased:
        return np.asarray(comb(i - 1, k - 1) / comb(n, k))
    return np.asarray((i / max(n, 1)) ** k - ((i - 1) / max(n, 1)) ** k)


def expected_best_of_k(
    values: npt.ArrayLike, direction: Direction, *, unbiased: bool = True
) -> Array:
    """Expected best of k trials for k = 1..N: what a smaller budget would have found.

    `unbiased` is the U statistic (Tang et al. 2020: draws without replacement); otherwise the
    V statistic (Dodge et al. 1909.03004: with replacement), biased and of lower variance.
    Both assume trials drawn independently, which a sampler's are only at its start.
    """
    v = np.sort(_finite(values))
    ordered = v[::-1] if direction == "minimize" else v
    best: Array = expected_best_weights(v.size, unbiased=unbiased) @ ordered
    return best


def _power(effect: float, n: npt.NDArray[np.int64], alpha: float) -> Array:
    """Power of the two-sided paired t test for a mean difference of `effect` deviations."""
    from scipy.special import nctdtr, stdtrit

    below = nctdtr(n - 1, abs(effect) * np.sqrt(n), stdtrit(n - 1, 1 - alpha / 2))
    return np.asarray(1 - below)


def seeds_for_effect(effect: float, alpha: float = 0.05, power: float = 0.8) -> int:
    """Paired seeds with which an effect (in deviations of the differences) is found with `power`.

    `SEEDS_CAP + 1` means more than `SEEDS_CAP`. Never below what the permutation test needs.
    """
    n = np.arange(fewest_seeds(alpha), SEEDS_CAP + 1)
    enough = n[_power(min(abs(effect), 3.0), n, alpha) >= power]  # 3: certain with six seeds
    return int(enough[0]) if enough.size else SEEDS_CAP + 1


def fewest_seeds(alpha: float) -> int:
    """The smallest n for which the exact sign-flip test can reach `alpha`: 2/2^n <= alpha."""
    return int(np.ceil(np.log2(2 / alpha) - 1e-9))


def sd_interval(sd: float, freedom: int, confidence: float = 0.8) -> tuple[float, float]:
    """The chi-squared interval of a normal standard deviation with `freedom` degrees of freedom."""
    from scipy.special import chdtri

    tail = (1 - confidence) / 2
    low, high = (sd * np.sqrt(freedom / chdtri(freedom, p)) for p in (tail, 1 - tail))
    return float(low), float(high)


def minimum_detectable_effect(
    n: int, sd: float, comparisons: int = 1, alpha: float = 0.05, power: float = 0.8
) -> float | None:
    """The mean difference that `n` paired seeds find with `power`; None with fewer than two.

    `sd` is the seed standard deviation of one arm (differences of two independent arms have √2
    of it), and alpha is divided by `comparisons` (the first step of Holm).
    """
    from scipy.optimize import brentq
    from scipy.special import stdtrit

    if n < 2:
        return None
    seeds = np.array([n])
    level = alpha / comparisons
    enough = (3 * stdtrit(n - 1, 1 - level / 2) + 5) / np.sqrt(n)
    effect = brentq(lambda e: _power(e, seeds, level)[0] - power, 0.0, enough)
    return float(effect * np.sqrt(2) * sd)
