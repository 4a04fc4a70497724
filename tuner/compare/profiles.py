"""Several tasks at once: performance profiles, benchmark scores and aggregates over tasks.

Sources: Dolan and Moré, Math. Program. 91 (2002); Dahl et al. (AlgoPerf), arXiv:2306.07179;
Agarwal et al. (rliable), arXiv:2108.13264.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from tuner.compare import statistics as st

R_MAX = 4.0  # of AlgoPerf: beyond four times the fastest nothing counts


def performance_ratios(times: npt.ArrayLike) -> st.Array:
    """Cost over the lowest cost of any arm on that task; `times` is (arms, tasks), inf = missed.

    Where every arm missed the target, every ratio is infinite. Raises ValueError for NaN or a time
    that is not positive.
    """
    t = np.asarray(times, dtype=float)
    if np.isnan(t).any() or (t <= 0).any():
        raise ValueError("times must be positive; allowed: inf for a target that was missed")
    fastest = t.min(axis=0)
    with np.errstate(invalid="ignore"):
        ratios = np.where(np.isfinite(t), t / fastest, np.inf)
    return np.asarray(ratios)


def performance_profile(ratios: st.Array, taus: npt.ArrayLike) -> st.Array:
    """Share of tasks on which each arm is within tau of the fastest: (arms, taus)."""
    limits = np.asarray(taus, dtype=float)
    share: st.Array = (ratios[:, :, None] <= limits * (1 + 1e-12)).mean(axis=1)
    return share


def benchmark_score(ratios: st.Array, r_max: float = R_MAX) -> st.Array:
    """AlgoPerf's B: the mean height of each arm's profile between 1 and `r_max`; (arms,).

    The integral of a step function, so exact: a task at ratio r gives (r_max - r) / (r_max - 1).
    """
    clipped = np.minimum(ratios, r_max)
    score: st.Array = ((r_max - clipped) / (r_max - 1)).mean(axis=1)
    return score


def geometric_speedup(times: npt.ArrayLike, reference: int) -> st.Array:
    """Geometric mean over tasks of reference time / own time, where both reached the target.

    NaN for an arm that shares no reached task with the reference arm.
    """
    t = np.asarray(times, dtype=float)
    both = np.isfinite(t) & np.isfinite(t[reference])
    logs = np.log(np.where(both, t[reference], 1.0)) - np.log(np.where(both, t, 1.0))
    counts = both.sum(axis=1)
    means = np.where(counts > 0, logs.sum(axis=1) / np.maximum(counts, 1), np.nan)
    return np.asarray(np.exp(means))


def iqm_interval(
    tasks: Sequence[npt.ArrayLike],
    rng: np.random.Generator,
    level: float = 0.95,
    resamples: int = 4_000,
) -> tuple[float, st.Interval | None]:
    """Interquartile mean of all runs of all tasks, and its stratified bootstrap interval.

    Runs are drawn anew within each task; the tasks stay, so the interval speaks about these tasks
    and no others. With 3 to 10 runs a task the plain percentile interval covers 91-94 %; here each
    draw's task mean is moved away from the sample's by Student's factor (94-97 % measured).
    None for the interval when a task has fewer than two runs.
    """
    from scipy import stats

    groups = [np.asarray(t, dtype=float) for t in tasks]
    value = st.iqm(np.concatenate(groups))
    if min(g.size for g in groups) < 2:
        return value, None
    degrees = sum(g.size - 1 for g in groups)
    tail = (1 - level) / 2
    student = stats.t.ppf(1 - tail, degrees) / stats.norm.ppf(1 - tail)
    drawn = []
    for g in groups:
        draw = rng.choice(g, size=(resamples, g.size))
        factor = student * np.sqrt(g.size / (g.size - 1)) - 1
        drawn.append(draw + factor * (draw.mean(axis=1, keepdims=True) - g.mean()))
    values = stats.trim_mean(np.concatenate(drawn, axis=1), 0.25, axis=1)
    low, high = np.quantile(values, [tail, 1 - tail])
    return value, st.Interval(float(low), float(high), "stratified bootstrap")


def improvement(
    a: Sequence[npt.ArrayLike], b: Sequence[npt.ArrayLike], level: float = 0.95
) -> tuple[float, st.Interval | None]:
    """P(A > B) for one run of each on a random one of these tasks, ties half, and its interval.

    The mean over tasks of Mann-Whitney's U over its maximum, with the variance of Brunner and
    Munzel (Biom. J. 42, 2000) on the logit scale, which keeps the ends within 0 and 1. One entry of
    `a` and `b` for each task, more is better. None for the interval with fewer than two runs.
    Raises ValueError when a task lacks a run.
    """
    from scipy.special import expit, logit, ndtri

    means, variance, smallest = [], 0.0, np.inf
    for x, y in zip(a, b, strict=True):
        means.append(st.probability_of_improvement(x, y))
        first, second = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
        smallest = min(smallest, first.size, second.size)
        if smallest >= 2:
            wins = np.sign(first[:, None] - second) / 2 + 0.5
            variance += wins.mean(axis=1).var(ddof=1) / first.size
            variance += wins.mean(axis=0).var(ddof=1) / second.size
    value = float(np.mean(means))
    if smallest < 2:
        return value, None
    runs = sum(np.size(x) for x in [*a, *b]) / 2
    # Without overlap the variance is 0: half a win is added, and what one run can weigh.
    centre = (value * runs + 0.5) / (runs + 1)
    spread = centre * (1 - centre)
    variance = max(variance / len(means) ** 2, spread / (4 * runs))
    half = ndtri((1 + level) / 2) * np.sqrt(variance) / spread
    low, high = expit(logit(centre) - half), expit(logit(centre) + half)
    return value, st.Interval(float(min(low, value)), float(max(high, value)), "brunner-munzel")
