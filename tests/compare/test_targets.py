"""Time to target: textbook survival curves, censoring, and what a diverged run counts."""

import math

import numpy as np
import pytest

from tuner.compare.targets import (
    Run,
    first_reach,
    kaplan_meier,
    median_target,
    time_to_target,
)

# Freireich et al., Blood 21 (1963): weeks of remission; + = censored. Kaplan-Meier estimates as in
# Kleinbaum and Klein, Survival Analysis, 3rd ed. 2012, table 2.1 (6-MP) and figure 2.1.
SIX_MP = [6, 6, 6, 7, 10, 13, 16, 22, 23]
SIX_MP_CENSORED = [6, 9, 10, 11, 17, 19, 20, 25, 32, 32, 34, 35]
SURVIVAL = {6: 0.8571, 7: 0.8067, 10: 0.7529, 13: 0.6902, 16: 0.6275, 22: 0.5378, 23: 0.4482}
PLACEBO = [1, 1, 2, 2, 3, 4, 4, 5, 5, 8, 8, 8, 8, 11, 11, 12, 12, 15, 17, 22, 23]


def test_kaplan_meier_on_freireichs_trial():
    times = [*SIX_MP, *[None] * 12]
    costs, share, low, high = kaplan_meier(times, [*SIX_MP, *SIX_MP_CENSORED])
    for week, survival in SURVIVAL.items():
        at = int(np.flatnonzero(costs == week)[0])
        assert 1 - share[at] == pytest.approx(survival, abs=5e-5)
    assert (low <= share).all()
    assert (share <= high).all()
    # Log-log interval at 10 weeks as lifelines 0.30 gives it.
    at = int(np.flatnonzero(costs == 10)[0])
    assert (1 - high[at], 1 - low[at]) == pytest.approx((0.50320, 0.88936), abs=1e-5)


def test_medians_and_their_intervals_agree_with_lifelines():
    # lifelines 0.30: median 23 weeks, 95 % interval 13 to infinity.
    curves = [
        Run(k, [(float(t), 0.0 if k < len(SIX_MP) else 1.0)])
        for k, t in enumerate([*SIX_MP, *SIX_MP_CENSORED])
    ]
    _, arms = times({"base": curves})
    got = arms["base"]
    assert (got.median, got.median_low, got.median_high) == (23, 13, None)
    placebo = [Run(k, [(float(t), 0.0)]) for k, t in enumerate(PLACEBO)]
    assert times({"base": placebo})[1]["base"].median == 8


def runs(*times, end=100.0, seeds=None, evaluations=10):
    """Runs whose metric falls to 0 at the time; None = never, "diverged" = nothing measured."""
    made = []
    for k, time in enumerate(times):
        steps = np.linspace(end / evaluations, end, evaluations)
        curve = [(float(x), 0.0 if isinstance(time, int | float) and x >= time else 1.0)
                 for x in steps]  # fmt: skip
        made.append(Run(k if seeds is None else seeds[k], () if time == "diverged" else curve))
    return made


def times(arms, baseline="base", **options):
    found = time_to_target(arms, 0.5, "minimize", baseline=baseline, **options)
    return found, {a.name: a for a in found.arms}


def test_medians_and_speedups_without_censoring():
    found, arms = times({"base": runs(40, 60, 80), "fast": runs(20, 30, 40)})
    assert (arms["base"].median, arms["fast"].median) == (60, 30)
    assert arms["fast"].speedup == pytest.approx(2)
    assert arms["fast"].speedup_low == pytest.approx(2)  # every seed is twice as fast
    assert arms["base"].speedup is None
    assert found.horizon == 100


def test_a_run_that_misses_the_target_is_not_dropped():
    _, arms = times({"base": runs(50, 50, 50), "half": runs(20, 20, None, None, None)})
    assert arms["half"].reached == 2
    assert arms["half"].median is None  # fewer than half of the runs are there
    assert arms["half"].mean == pytest.approx((20 + 20 + 3 * 100) / 5)
    _, arms = times({"base": runs(50, 50, 50), "most": runs(20, 30, 40, None, None)})
    assert arms["most"].median == 40  # dropping the misses would say 30


def test_a_diverged_run_never_arrives_however_early_it_ended():
    _, arms = times({"base": runs(50, 50, 50), "wild": runs(20, "diverged", "diverged")})
    assert arms["wild"].times == [20, None, None]
    assert arms["wild"].ends == [100, 100, 100]
    assert arms["wild"].median is None
    assert arms["wild"].speedup < 1  # 50 against 20, 100, 100


def test_arms_of_different_length_are_counted_to_the_shorter_horizon():
    found, arms = times({"base": runs(None, None), "long": runs(150, 150, end=300.0)})
    assert found.horizon == 100
    assert arms["long"].mean == 100
    assert arms["long"].median == 150  # its curve goes on
    assert arms["long"].speedup == pytest.approx(1)


def test_an_arm_that_ends_early_hides_no_speedup():
    # On a clock the runs of a fast arm end before those of a slow one reach the target.
    arms = {
        "base": runs(60, 80, 100),
        "fast": runs(15, 20, 25, end=30.0, evaluations=6),
        "short": runs(None, None, None, end=20.0),
    }
    found, got = times(arms)
    assert got["fast"].speedup == pytest.approx(4)
    assert found.horizon == 20  # the means of all arms are counted as far as `short` was followed
    assert got["short"].speedup == pytest.approx(1)


def test_the_target_is_one_that_half_of_the_baselines_runs_reach():
    assert median_target([0.5, 0.3, 0.4], "minimize") == 0.4
    assert median_target([0.5, 0.3, 0.4, 0.2], "minimize") == 0.4
    assert median_target([0.5, 0.3, 0.4, 0.2], "maximize") == 0.3
    assert median_target([0.5, None, 0.4], "minimize") == 0.5
    for hopeless in ([None, None, 0.1], []):
        with pytest.raises(ValueError, match="no median"):
            median_target(hopeless, "minimize")


def test_reaching_is_at_the_evaluation_and_in_the_metrics_direction():
    curve = [(1.0, 0.2), (2.0, 0.6), (3.0, 0.5)]
    assert first_reach(curve, 0.6, "maximize") == 2
    assert first_reach(curve, 0.61, "maximize") is None
    assert first_reach(curve, 0.2, "minimize") == 1


def test_impossible_questions_are_refused():
    with pytest.raises(ValueError, match="no run has an evaluation"):
        times({"base": runs("diverged")})
    with pytest.raises(ValueError, match="allowed: fast"):
        times({"fast": runs(10)})
    assert times({"base": runs(50, 50), "none": []})[1].keys() == {"base"}


def test_speedup_intervals_cover():
    # Two arms with lognormal times, the second 1.5 times as fast, seeds in common.
    rng = np.random.default_rng(0)
    inside = 0
    for _ in range(300):
        shared = rng.normal(0, 0.2, 10)
        base, fast = np.exp(4 + shared + rng.normal(0, 0.2, (2, 10)))
        arms = {
            "base": [Run(k, [(float(t), 0.0)]) for k, t in enumerate(base)],
            "fast": [Run(k, [(float(t), 0.0)]) for k, t in enumerate(fast / 1.5)],
        }
        # All are followed to the same end, so that nothing is censored.
        arms = {n: [r._replace(curve=[*r.curve, (1e4, 0.0)]) for r in a] for n, a in arms.items()}
        _, found = times(arms)
        inside += found["fast"].speedup_low <= 1.5 <= found["fast"].speedup_high
    assert 0.92 <= inside / 300 <= 0.98
    assert math.isfinite(found["fast"].mean)
