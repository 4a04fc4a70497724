"""Several tasks: profiles and scores by their definitions, and intervals that cover."""

import numpy as np
import pytest
from scipy import stats

from tuner.compare import profiles
from tuner.compare import statistics as st

INF = np.inf
# (arms, tasks): the first is fastest twice and misses one target, nobody reaches the last.
TIMES = np.array([[10.0, 20, INF, INF], [15, 20, 30, INF], [50, 30, 15, INF]])


def rng(seed=0):
    return np.random.default_rng(seed)


def test_ratios_profiles_and_scores_by_hand():
    ratios = profiles.performance_ratios(TIMES)
    assert ratios.tolist() == [[1, 1, INF, INF], [1.5, 1, 2, INF], [5, 1.5, 1, INF]]
    shares = profiles.performance_profile(ratios, [1, 1.5, 2, 4, 10])
    assert shares.tolist() == [
        [0.5] * 5,
        [0.25, 0.5, 0.75, 0.75, 0.75],
        [0.25, 0.5, 0.5, 0.5, 0.75],
    ]
    # B = mean of (4 - r) / 3 up to r = 4; a miss gives 0.
    assert profiles.benchmark_score(ratios) == pytest.approx(
        [2 / 4, (2.5 / 3 + 1 + 2 / 3) / 4, (2.5 / 3 + 1) / 4]
    )


def test_the_score_is_the_integral_of_the_profile():
    # AlgoPerf's code integrates the profile numerically (scoring/performance_profile.py).
    ratios = profiles.performance_ratios(rng(1).lognormal(1, 0.5, (5, 14)))
    taus = np.linspace(1, 4, 20_001)
    integral = np.trapezoid(profiles.performance_profile(ratios, taus), taus, axis=1) / 3
    assert profiles.benchmark_score(ratios) == pytest.approx(integral, abs=1e-3)


def test_geometric_speedups_leave_missed_targets_out():
    assert profiles.geometric_speedup(TIMES, 0)[1] == pytest.approx(np.sqrt(10 / 15))
    assert profiles.geometric_speedup(TIMES, 1)[1] == 1
    missed = profiles.geometric_speedup(np.array([[INF], [3.0]]), 1)
    assert np.isnan(missed[0])


@pytest.mark.parametrize("bad", [0.0, -1.0, np.nan])
def test_a_time_that_is_none_is_refused(bad):
    with pytest.raises(ValueError, match="positive"):
        profiles.performance_ratios([[1.0, bad]])


def test_improvement_is_mann_whitney_averaged_over_tasks():
    a, b = [rng(2).normal(1, 1, 8), rng(3).normal(0, 1, 6)], [rng(4).normal(0, 1, 7), np.zeros(5)]
    p, interval = profiles.improvement(a, b)
    both = [
        stats.mannwhitneyu(x, y).statistic / (x.size * y.size) for x, y in zip(a, b, strict=True)
    ]
    assert p == pytest.approx(np.mean(both))
    assert 0 <= interval.low <= p <= interval.high <= 1
    other, mirrored = profiles.improvement(b, a)
    assert p + other == pytest.approx(1)
    assert mirrored.low == pytest.approx(1 - interval.high, abs=1e-9)
    assert profiles.improvement([[1.0]], [[0.0]]) == (1.0, None)
    certain, interval = profiles.improvement([np.arange(5) + 9.0], [np.arange(5.0)])
    assert certain == 1
    assert 0.5 < interval.low < 1 == interval.high


def test_the_interquartile_mean_is_that_of_all_runs():
    tasks = [np.arange(4.0), np.arange(4.0) + 10]
    value, interval = profiles.iqm_interval(tasks, rng())
    assert value == st.iqm(np.concatenate(tasks))
    assert interval.low <= value <= interval.high
    assert profiles.iqm_interval(tasks, rng())[1] == interval
    assert profiles.iqm_interval([[1.0], [2.0, 3.0]], rng())[1] is None


@pytest.mark.parametrize("means", [[0.0], [0.0, 0.0, 0.0], [0.0, 1.0, 3.0]])
def test_intervals_over_tasks_cover(means):
    shift = np.array(means)[:, None]
    drawn = rng(5)
    truth = stats.trim_mean((shift + drawn.standard_normal((len(means), 100_000))).ravel(), 0.25)
    beats = np.mean(stats.norm.cdf(np.array(means) / np.sqrt(2)))
    iqm = wins = 0
    for _ in range(400):
        tasks = shift + drawn.standard_normal((len(means), 10))
        _, (low, high, _) = profiles.iqm_interval(tasks, drawn, resamples=400)
        iqm += low <= truth <= high
        _, (low, high, _) = profiles.improvement(tasks, drawn.standard_normal((len(means), 10)))
        wins += low <= beats <= high
    assert 0.92 <= iqm / 400 <= 0.98
    assert 0.92 <= wins / 400 <= 0.99
