"""From losses of short runs to a rate and its uncertainty, on losses whose answer is known."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tuner.lr_fit import (
    FIXED_SLOPE,
    NEGLIGIBLE,
    SLOPE_SD,
    Belief,
    are_best,
    best_of,
    continued,
    excess,
    locate,
    slope,
    temperature,
)

XS = [-0.9, -0.45, 0.0, 0.45, 0.9]
BATCHES = 8


def runs(means: list[float], start: float = 2.0, noise: float = 0.0, seed: int = 0) -> tuple:
    """Losses of runs, shape (rates, batches), and before them; noise of its own in each run."""
    rng = np.random.default_rng(seed)
    common = rng.standard_normal(BATCHES)
    rows = [mean + common + noise * rng.standard_normal(BATCHES) for mean in means]
    return np.array(rows), start + common


def width(found: Belief) -> float:
    below, above = found.interval
    return above - below


@given(centre=st.floats(-0.3, 0.3), factor=st.floats(1e-3, 1e3), shift=st.floats(-100, 100))
def test_the_bottom_of_a_valley_is_found(centre: float, factor: float, shift: float) -> None:
    """Whatever the level and the unit of the loss."""
    losses = np.array([[factor * (x - centre) ** 2 + shift] for x in XS])
    found = locate(70, XS, losses, np.array([factor * 1.0 + shift]))
    assert found.log_lr == pytest.approx(centre, abs=0.12)
    assert found.bracketed


def test_weights_are_a_density_over_the_rates_that_were_tried() -> None:
    found = locate(70, XS, *runs([2.0, 1.2, 1.0, 1.4, math.inf]))
    assert found.weights.sum() == pytest.approx(1)
    assert len(found.log_lrs) == len(found.weights)
    assert XS[0] - 0.3 < found.log_lrs[0] < XS[0] < XS[-1] < found.log_lrs[-1] < XS[-1] + 0.3


def test_the_interval_holds_four_fifths_of_the_density() -> None:
    found = locate(70, XS, *runs([1.5, 1.1, 1.0, 1.05, 1.9]))
    below, above = found.interval
    inside = (found.log_lrs >= below) & (found.log_lrs <= above)
    assert found.weights[inside].sum() == pytest.approx(0.8, abs=0.02)


def test_on_a_flat_stretch_the_answer_is_its_middle_whichever_loss_is_lowest() -> None:
    flat = [[1.8, 1.0 + 0.01 * (k == 1), 1.01, 1.0 + 0.01 * (k == 3), 1.8] for k in (1, 3)]
    found = [locate(70, XS, *runs(means)) for means in flat]
    assert abs(found[0].log_lr - found[1].log_lr) < 0.25
    assert all(abs(each.log_lr) < 0.15 for each in found)
    assert all(width(each) > 0.7 for each in found)


def test_a_sharp_valley_has_a_narrow_interval() -> None:
    assert width(locate(70, XS, *runs([1.9, 1.5, 1.0, 1.6, 1.9]))) < 0.25


def test_the_answer_keeps_away_from_a_cliff() -> None:
    assert locate(70, XS, *runs([1.3, 1.1, 1.0, math.inf, math.inf])).log_lr < -0.03
    assert locate(70, XS, *runs([math.inf, math.inf, 1.0, 1.1, 1.3])).log_lr > 0.03


def test_a_lowest_loss_at_the_end_is_not_bracketed() -> None:
    falling = [1.9, 1.7, 1.5, 1.2, 1.0]
    for means in (falling, falling[::-1]):
        assert not locate(70, XS, *runs(means)).bracketed
    below, above = locate(70, XS, *runs(falling)).interval
    assert below < XS[-1] < above


def test_of_losses_that_differ_by_rounding_the_lowest_rate_is_best() -> None:
    for means, best in (
        ([2.0, 1.0, 1.0 + 1e-7, 1.0 - 1e-7], 1),
        ([2.0, -5.0, -5.0 - 1e-7], 1),
        ([2.0, 1.0, 0.99], 2),
        ([2.0, 3e-9, 1e-9], 1),  # after a loss of 3 nothing is left
        ([math.inf, math.inf], 0),
    ):
        losses, before = np.array(means)[:, None], np.array([3.0])
        assert best_of(losses, before) == best
        assert are_best(losses, before).tolist().index(True) == best
        found = locate(70, XS[: len(means)], losses, before)
        assert found.bracketed == (0 < best < len(means) - 1)


def test_what_a_rate_loses_is_a_share_of_the_gain() -> None:
    losses, before = runs([2.0, 1.5, 1.0, 7.0, math.inf])
    assert excess(losses, before) == pytest.approx([1.0, 0.5, 0.0, 1.0, 1.0])
    assert excess(losses, before - 5) == pytest.approx([1.0, 1.0, 0.0, 1.0, 1.0])


def test_a_gain_that_is_uncertain_is_worth_less() -> None:
    means = [1.9, 1.5, 1.0, 1.5, 1.9]
    assert temperature(*runs(means)) == NEGLIGIBLE
    assert 2 * NEGLIGIBLE < temperature(*runs(means, noise=1.0)) <= 1
    assert temperature(*runs([2.5, 2.2])) == 1.0


def test_common_noise_of_the_batches_does_not_matter() -> None:
    answers = {
        round(locate(70, XS, *runs([1.9, 1.4, 1.0, 1.3, 1.9], seed=k)).log_lr, 9) for k in range(5)
    }
    assert len(answers) == 1


def test_noise_widens_the_interval() -> None:
    means = [1.9, 1.4, 1.0, 1.3, 1.9]
    quiet, loud = (locate(70, XS, *runs(means, noise=noise)) for noise in (0.0, 1.0))
    assert width(loud) > 1.5 * width(quiet)


def test_the_slope_lies_between_what_curvature_and_what_distance_ask_for() -> None:
    assert slope(1.0) == 0
    assert slope(0.0) == FIXED_SLOPE
    assert FIXED_SLOPE < slope(0.6) < slope(0.7) < 0


def known(log_lr: float, horizon: int = 75) -> Belief:
    """All weight at one rate."""
    return Belief(horizon, log_lr, np.ones(1), True)


def test_a_best_rate_goes_on_falling_with_the_length_of_the_run() -> None:
    found = known(-2.0)
    assert continued(found, 75, -0.6).log_lr == -2
    assert continued(found, 750, -0.6).log_lr == pytest.approx(-2.6)
    assert continued(found, 7500, -0.6).log_lr == pytest.approx(-3.2)
    assert continued(found, 750, 0.0).log_lr == pytest.approx(-2)


def test_longer_runs_are_less_certain() -> None:
    widths = [width(continued(known(-2.0), steps, 0.5)) for steps in (75, 300, 3000, 100_000)]
    assert widths == sorted(widths)
    assert widths[0] == pytest.approx(0)
    assert widths[1] == pytest.approx(2 * 1.2816 * SLOPE_SD * math.log10(4), rel=0.05)


def test_the_interval_holds_the_truth_as_often_as_it_says() -> None:
    """Slopes around the rule's own, as far from it as single tasks are."""
    rng = np.random.default_rng(0)
    below, above = continued(known(0.0), 300, FIXED_SLOPE).interval
    falls = rng.normal(FIXED_SLOPE, SLOPE_SD, 4000) * math.log10(300 / 75)
    assert 0.77 < float(np.mean((below < falls) & (falls < above))) < 0.83
