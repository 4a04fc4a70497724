"""Statistics against textbook values, other implementations and brute force."""

from itertools import combinations, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as hs
from scipy import stats

from tuner.compare import statistics as st
from tuner.compare.selection import point_qualities, search_losses

# Fisher, The Design of Experiments, 1935: Darwin's maize, crossed minus selfed, eighths of an inch.
DARWIN = [49, -67, 8, 16, 6, 23, 28, 41, 14, 29, 56, 24, 75, 60, -48]
scores = hs.lists(hs.floats(-100, 100), min_size=1, max_size=9)


def rng(seed=0):
    return np.random.default_rng(seed)


def test_sign_flip_on_darwins_maize_is_fishers_value():
    # Fisher: 1726 of the 32768 sign patterns; sampled here, since 15 pairs are above the limit.
    assert st.sign_flip_test(DARWIN, rng()) == pytest.approx(1726 / 32768, abs=0.007)


@pytest.mark.parametrize("n", [2, 5, 8, 12])
def test_exact_sign_flip_agrees_with_scipy(n):
    d = rng(n).normal(0.5, 1, n)
    other = stats.permutation_test(
        (d, np.zeros(n)), lambda x, y: np.abs(np.mean(x - y)), permutation_type="samples",
        alternative="greater",
    )  # fmt: skip
    assert st.sign_flip_test(d, rng()) == pytest.approx(other.pvalue)


@pytest.mark.parametrize(("n", "smallest"), [(5, 0.0625), (6, 0.03125), (8, 0.0078125)])
def test_smallest_attainable_p_value(n, smallest):
    assert st.sign_flip_test(np.arange(1, n + 1), rng()) == smallest
    assert st.fewest_seeds(0.05) == 6


def test_sign_flip_without_evidence_is_one():
    assert st.sign_flip_test([], rng()) == 1
    assert st.sign_flip_test([0.0] * 8, rng()) == 1
    assert st.sign_flip_test([3.0], rng()) == 1


def test_two_arms_need_no_correction():
    pair = rng(3).normal(size=(2, 8))
    tests = st.paired_tests(pair, rng())
    alone = st.sign_flip_test(pair[0] - pair[1], rng())
    assert tests.p_value[0] == tests.adjusted[0] == alone


@given(hs.integers(2, 5), hs.integers(2, 8), hs.integers(0, 10_000))
@settings(max_examples=60, deadline=None)
def test_step_down_correction_by_its_definition(arms, n, seed):
    data = np.round(rng(seed).normal(size=(arms, n)), 1)  # rounded: ties occur
    tests = st.paired_tests(data, rng())
    d = np.array([data[i] - data[j] for i, j in tests.pairs])
    patterns = np.array(list(product([1, -1], repeat=n)))
    flipped = np.abs(patterns @ d.T) / n
    order = np.argsort(-flipped[0], kind="stable")
    previous = 0.0
    for place, pair in enumerate(order):
        exceeds = flipped[:, order[place:]].max(axis=1) >= flipped[0, pair] - 1e-9
        previous = max(previous, exceeds.mean())
        assert tests.adjusted[pair] == pytest.approx(previous)
    assert (tests.adjusted >= tests.p_value - 1e-12).all()


def test_a_seed_that_an_arm_lacks_is_left_out_of_its_pairs():
    data = np.array([[1.0, 2, 3, 4], [0.5, 1, np.nan, np.nan], [0, 0, 0, 0]])
    tests = st.paired_tests(data, rng())
    assert tests.seeds.tolist() == [2, 4, 2]
    assert tests.difference.tolist() == [0.75, 2.5, 0.75]
    assert tests.p_value[0] == 0.5  # what two pairs can show at most


def test_holm_on_a_textbook_example():
    assert st.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    # statsmodels 0.15, multipletests(method="holm")
    assert st.holm([0.01, 0.04, 0.03, 0.005, 0.2]) == pytest.approx([0.04, 0.09, 0.09, 0.025, 0.2])
    assert st.holm([]).size == 0
    assert st.holm([0.6, 0.7]).tolist() == [1, 1]


def test_few_seeds_test_is_students_above_the_floor():
    d = [1.0, 1.4, 0.7, 1.2]
    assert st.few_seeds_test(d, 0.0) == pytest.approx(stats.ttest_1samp(d, 0).pvalue)
    assert st.few_seeds_test(d, 5.0) > 0.5
    # Coarse scores that happen to agree, and one pair, show nothing.
    assert st.few_seeds_test([0.01] * 3, 0.0) == st.few_seeds_test([9.0], 1.0) == 1


def test_finite_worst_is_beyond_every_score_and_never_dropped():
    filled = st.finite_worst([[0.2, None], [0.5, 0.3]], "minimize")
    assert filled == [[0.2, pytest.approx(0.8)], [0.5, 0.3]]
    assert st.finite_worst([[0.2, None], [0.5, 0.3]], "maximize")[0][1] == pytest.approx(-0.1)
    with pytest.raises(ValueError, match="every run diverged"):
        st.finite_worst([[None], [None]], "minimize")


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_nan_is_never_accepted_silently(bad):
    with pytest.raises(ValueError, match="NaN"):
        st.finite_worst([[0.1, bad]], "minimize")
    for call in (
        lambda v: st.sign_flip_test(v, rng()), st.t_interval, st.iqm, st.holm,
        lambda v: st.bca_interval(v, rng()), lambda v: st.tost(v, 1.0),
        lambda v: st.expected_best_of_k(v, "minimize"),
        lambda v: st.probability_of_improvement(v, [1.0]), lambda v: st.few_seeds_test(v, 0.1),
    ):  # fmt: skip
        with pytest.raises(ValueError, match="finite"):
            call([1.0, bad, 2.0])


def test_the_sign_flip_interval_holds_what_its_test_does_not_reject():
    v = rng(2).normal(0.5, 1, 9)
    found = st.sign_flip_interval(v, rng())
    inside = [m for m in np.linspace(-3, 3, 601) if st.sign_flip_test(v - m, rng()) > 0.05]
    assert found[:2] == pytest.approx((min(inside), max(inside)), abs=0.01)
    assert st.sign_flip_interval([1.0] * 20, rng())[:2] == (1, 1)
    assert st.sign_flip_interval([1.0], rng()) is None
    few = [1.0, 2.0, 4.0]  # no 95 % interval can be made of eight patterns
    assert st.sign_flip_interval(few, rng()) == st.t_interval(few)


def test_one_seed_that_is_far_off_makes_no_agreement_doubtful():
    v = [1, 1.1, 0.9, 1, 1, 1, 1.2, 1, 0.8, 20]
    assert st.sign_flip_test(v, rng()) < 0.01
    assert st.t_interval(v).low < 0 < st.sign_flip_interval(v, rng()).low
    assert st.sign_flip_interval(v, rng()).high > np.mean(v)


def test_intervals():
    v = rng(1).normal(5, 2, 30)
    reference = stats.ttest_1samp(v, 0).confidence_interval(0.95)
    assert st.t_interval(v)[:2] == pytest.approx((reference.low, reference.high))
    assert st.t_interval([1.0]) is None
    assert st.t_interval([2.0, 2.0]) == (2.0, 2.0, "t")
    assert st.bca_interval(v, rng()).method == "bca"
    assert st.bca_interval(v, rng()) == st.bca_interval(v, rng())
    assert st.bca_interval(v[:29], rng()) == st.t_interval(v[:29])  # and it says so
    assert st.bca_interval([3.0] * 40, rng()) == (3.0, 3.0, "t")


def test_bca_follows_skew():
    v = rng(2).exponential(size=60)
    low, high, _ = st.bca_interval(v, rng())
    assert high - v.mean() > v.mean() - low


def test_iqm_drops_a_quarter_at_each_end():
    assert st.iqm([0, 1, 2, 3, 100, -50, 1.5, 2.5]) == pytest.approx(1.75)
    with pytest.raises(ValueError, match="at least one"):
        st.iqm([])


@given(scores, scores)
@settings(max_examples=100, deadline=None)
def test_probability_of_improvement_is_complementary_and_mann_whitney(a, b):
    p = st.probability_of_improvement(a, b)
    assert p + st.probability_of_improvement(b, a) == pytest.approx(1)
    u = stats.mannwhitneyu(a, b, method="asymptotic").statistic if len({*a, *b}) > 1 else None
    assert p == pytest.approx(0.5 if u is None else u / (len(a) * len(b)))


@given(scores, hs.sampled_from(["minimize", "maximize"]))
@settings(max_examples=30, deadline=None)
def test_expected_best_of_k_is_the_mean_over_all_draws(values, direction):
    values = values[:5]
    best = min if direction == "minimize" else max
    u = st.expected_best_of_k(values, direction)
    v = st.expected_best_of_k(values, direction, unbiased=False)
    for k in range(1, len(values) + 1):
        without = [best(c) for c in combinations(values, k)]
        replaced = [best(c) for c in product(values, repeat=k)]
        assert u[k - 1] == pytest.approx(np.mean(without), abs=1e-9)
        assert v[k - 1] == pytest.approx(np.mean(replaced), abs=1e-9)


def test_tost_agrees_with_two_t_tests():
    d = rng(4).normal(0.1, 1, 20)
    lower = stats.ttest_1samp(d, -0.8, alternative="greater").pvalue
    upper = stats.ttest_1samp(d, 0.8, alternative="less").pvalue
    assert st.tost(d, 0.8) == pytest.approx(max(lower, upper))
    # statsmodels 0.15, ttost_paired(d, 0, -0.4, 0.4)
    few = [0.3, -0.1, 0.2, 0.5, 0.1, -0.2, 0.4, 0.05]
    assert st.tost(few, 0.4) == pytest.approx(0.0121945743)
    assert (st.tost([0.1], 9.0), st.tost([0.1, 0.1], 0.2), st.tost([0.1, 0.1], 0.1)) == (1, 0, 1)


def test_power_of_the_paired_t_test_as_in_published_tables():
    # Cohen's d_z = 0.5 at 80 % needs 34 pairs, 0.8 needs 15 (G*Power 3.1).
    assert st.seeds_for_effect(0.5) == 34
    assert st.seeds_for_effect(0.8) == 15
    assert st.seeds_for_effect(0.0) == st.SEEDS_CAP + 1  # "more than 100"
    assert st.seeds_for_effect(50.0) == st.fewest_seeds(0.05)
    assert st.minimum_detectable_effect(34, 1 / np.sqrt(2)) == pytest.approx(0.494, abs=0.003)
    # statsmodels 0.15, TTestPower().solve_power(nobs=12, alpha=0.05, power=0.8)
    assert st.minimum_detectable_effect(12, 1 / np.sqrt(2)) == pytest.approx(0.88865, abs=1e-4)
    assert st.minimum_detectable_effect(8, 1.0, comparisons=3) > st.minimum_detectable_effect(8, 1)
    assert st.minimum_detectable_effect(1, 1.0) is None
    assert st.minimum_detectable_effect(2, 1.0) > 10


def test_p_best_and_regret_of_certain_and_equal_arms():
    certain = st.quality_draws(np.array([[9.0, 9.1, 9.2], [1.0, 1.2, 1.1]]), rng())
    assert st.p_best(certain)[0] > 0.99
    assert st.expected_regret(certain, 0) == pytest.approx(0, abs=1e-2)
    assert st.expected_regret(certain, 1) == pytest.approx(8, rel=0.05)
    tied = st.quality_draws(np.full((4, 3), 2.0), rng())
    assert st.p_best(tied).tolist() == [0.25] * 4
    with pytest.raises(ValueError, match="two"):
        st.quality_draws(np.ones((3, 1)), rng())


def test_an_arm_with_one_seed_borrows_the_pooled_spread():
    data = np.array([[1.0, 1.2, 0.8, 1.1], [1.05, np.nan, np.nan, np.nan]])
    draws = st.quality_draws(data, rng())
    pooled = data[0].std(ddof=1)
    spread = np.quantile(draws[:, 1], [0.25, 0.75])
    assert 0.4 < (spread[1] - spread[0]) / (1.35 * pooled) < 2.5


def losses(*searches, sd=0.01, top=1, seeds=1):
    return search_losses(searches, top=top, seeds=seeds, seed_sd=sd, rng=rng(1))


def test_luck_in_the_search_lowers_p_best():
    data = rng(5).normal([[1.0], [0.7]], 0.05, size=(2, 8))
    # One trial of five carries the first arm: without it the search finds 0.2.
    lucky = losses(([1.0, 0.2, 0.1, 0.1, 0.0], {}, None), ([0.7] * 5, {}, None))
    sure = st.p_best(st.quality_draws(data, rng()))
    unsure = st.p_best(st.quality_draws(data, rng(), lucky))
    assert sure[0] > 0.99
    assert unsure[0] == pytest.approx(1 - 0.8**5, abs=0.03)


def test_repeating_the_selection_by_its_definition():
    # Three points of known worth, without noise: the best drawn one is chosen.
    loss = losses(([3.0, 2.0, 0.0], {}, 0), sd=0.0)[:, 0]
    shares = {float(v): float(np.mean(loss == v)) for v in np.unique(loss)}
    assert shares == pytest.approx({0.0: 1 - 8 / 27, 1.0: 7 / 27, 3.0: 1 / 27}, abs=0.03)


def test_confirmation_takes_the_luck_off_a_score():
    values = np.array([1.0, 0.9, 0.2, 0.1])
    # The first looked best and confirmed worse than the second.
    worth = point_qualities(values, {0: [0.7, 0.72], 1: [0.85, 0.83]}, 0.02)
    assert worth[1] > worth[0] > worth[2]
    assert worth[:2] == pytest.approx([0.71, 0.84], abs=0.01)
    assert worth[2] < 0.2  # what the confirmed ones lost is expected of the others too
    # Scores that differ by less than the noise are worth the same.
    assert np.ptp(point_qualities(np.array([0.5, 0.51]), {}, 0.1)) == 0
    chosen = losses((values, {0: [0.7, 0.72], 1: [0.85, 0.83]}, 1), top=2, seeds=2, sd=0.02)
    assert chosen.min() == pytest.approx(0, abs=1e-9)
    assert 0 < chosen.mean() < 0.3


def test_a_search_that_no_arm_or_one_arm_tells_costs_nothing():
    assert losses(([], {}, None), ([1.0], {}, None)) is None


def test_the_interval_of_a_deviation_holds_it_as_often_as_it_says() -> None:
    seeds = 3
    found = np.random.default_rng(0).normal(size=(20_000, seeds)).std(axis=1, ddof=1)
    low, high = np.array([st.sd_interval(sd, seeds - 1) for sd in found]).T
    assert np.mean((low < 1) & (high > 1)) == pytest.approx(0.8, abs=0.01)
    assert np.mean(high < 1) == pytest.approx(0.1, abs=0.01)
