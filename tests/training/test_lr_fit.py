"""From losses of short runs to a rate and its uncertainty, on losses whose answer is known."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tuner.lr_fit import (
    FIXED_SLOPE,
    SLOPE_SD,
    UNBRACKETED_SD,
    Optimum,
    best_of,
    continued,
    locate,
    lowest,
    slope,
    vertex,
)


@given(centre=st.floats(-0.3, 0.3), factor=st.floats(1e-3, 1e3), shift=st.floats(-100, 100))
def test_the_vertex_of_a_parabola_is_found(centre: float, factor: float, shift: float) -> None:
    xs = (-1.0, 0.0, 1.0)
    ys = [factor * (x - centre) ** 2 + shift for x in xs]
    assert vertex(xs, ys) == pytest.approx(centre, abs=1e-3)


def test_a_cliff_moves_the_vertex_no_further_than_its_cut() -> None:
    assert vertex((-1, 0, 1), (1.0, 0.0, 5.0)) == vertex((-1, 0, 1), (1.0, 0.0, math.inf))
    assert -0.5 < vertex((-1, 0, 1), (1.0, 0.0, math.inf)) < 0


def test_equal_losses_have_their_middle() -> None:
    assert vertex((-1, 0, 1), (2.0, 2.0, 2.0)) == 0


def test_a_lowest_loss_at_the_end_is_not_bracketed() -> None:
    assert lowest((0.0, 1.0, 2.0), (3.0, 2.0, 1.0)) == (2.0, False)
    assert lowest((0.0, 1.0, 2.0), (1.0, 2.0, 3.0)) == (0.0, False)


def test_of_losses_that_differ_by_rounding_the_lowest_rate_is_best() -> None:
    assert best_of([3.0, 1.0, 1.0 + 1e-7, 1.0 - 1e-7]) == 1
    assert best_of([3.0, -5.0, -5.0 - 1e-7]) == 1
    assert best_of([3.0, 1.0, 0.99]) == 2
    assert best_of([math.inf, math.inf]) == 0
    assert lowest((0.0, 1.0, 2.0), (2.0, 1.0, 1.0 - 1e-7))[1]


def losses(noise: float, batches: int = 8, seed: int = 0) -> tuple[list[float], np.ndarray]:
    """A valley at -0.2 with noise that differs between rates, on top of noise that does not."""
    rng = np.random.default_rng(seed)
    xs = [-0.9, -0.6, -0.3, 0.0, 0.3]
    common = rng.standard_normal(batches)
    rows = [(x + 0.2) ** 2 + common + noise * rng.standard_normal(batches) for x in xs]
    return xs, np.array(rows)


def test_common_noise_of_the_batches_does_not_matter() -> None:
    found = locate(75, *losses(0.0))
    assert found.log_lr == pytest.approx(-0.2, abs=1e-6)
    assert found.bracketed


def test_noise_widens_the_uncertainty() -> None:
    quiet, loud = locate(75, *losses(0.01)), locate(75, *losses(1.5))
    assert quiet.sd < 0.2 < loud.sd
    assert locate(75, [0.0, 0.5], np.array([[2.0, 2.0], [1.0, 1.0]])).sd == UNBRACKETED_SD


def test_the_slope_lies_between_what_curvature_and_what_distance_ask_for() -> None:
    assert slope(1.0) == 0
    assert slope(0.0) == FIXED_SLOPE
    assert FIXED_SLOPE < slope(0.6) < slope(0.7) < 0


def test_a_best_rate_goes_on_falling_with_the_length_of_the_run() -> None:
    found = Optimum(75, -2.0, 0.1, True)
    assert continued(found, 75, -0.6).log_lr == -2
    assert continued(found, 750, -0.6).log_lr == pytest.approx(-2.6)
    assert continued(found, 7500, -0.6).log_lr == pytest.approx(-3.2)
    assert continued(found, 750, 0.0).log_lr == -2


def test_longer_runs_are_less_certain() -> None:
    found = Optimum(75, -2.0, 0.1, True)
    deviations = [continued(found, steps, 0.5).sd for steps in (75, 300, 3000, 100_000)]
    assert deviations == sorted(deviations)
    assert deviations[0] == pytest.approx(0.1)
    assert deviations[-1] > 2 * deviations[1]


def test_the_interval_holds_the_truth_as_often_as_it_says() -> None:
    """Slopes around the rule's own, as far from it as single tasks are."""
    rng = np.random.default_rng(0)
    held = 0
    for _ in range(1000):
        fall = rng.normal(-FIXED_SLOPE, SLOPE_SD) * math.log10(300 / 75)
        found = Optimum(75, fall + rng.normal(0, 0.1), 0.1, True)
        below, above = continued(found, 300, FIXED_SLOPE).interval
        held += below < 0 < above
    assert 0.77 < held / 1000 < 0.83
