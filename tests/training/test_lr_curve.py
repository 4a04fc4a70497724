"""What is read off a curve, on curves whose answer is known."""

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tuner.lr_curve import SAFETY, explosion, starts_too_high, suggest
from tuner.records import LrCurve

Points = list[tuple[float, float]]


def curve(
    *,
    low: float = 1e-6,
    high: float = 1.0,
    points: int = 90,
    noise: float = 0.02,
    drop: float = 1.5,
    onset: float = 1e-3,
    explodes: float = 0.1,
    seed: int = 0,
) -> Points:
    """A noisy loss that falls from 2.3 by `drop` after `onset`, and then explodes."""
    rng = np.random.default_rng(seed)
    found = []
    for lr in np.geomspace(low, high, points).tolist():
        gained = drop / (1 + (4 * onset / lr) ** 2)
        growth = min((lr / explodes) ** 4, 1e9) if lr > explodes else 0.0
        found.append((lr, 2.3 - gained + 3 * growth + noise * rng.standard_normal()))
    return found


def moved(points: Points, factor: float = 1.0, shift: float = 0.0) -> Points:
    return [(lr, factor * loss + shift) for lr, loss in points]


def test_the_suggestion_lies_between_onset_and_explosion() -> None:
    result = suggest(curve())
    assert result.suggested_lr is not None
    assert 1e-3 < result.suggested_lr <= 0.1 / SAFETY
    assert 0.08 < (result.diverges_at or 0) < 0.2
    assert result.flags == []
    assert "explodes at" in result.reason


@pytest.mark.parametrize("points", [60, 90, 300, 1000])
def test_the_answer_does_not_depend_on_the_number_of_steps(points: int) -> None:
    reference = suggest(curve()).suggested_lr or 0
    found = [suggest(curve(points=points, seed=seed)).suggested_lr or 0 for seed in range(5)]
    assert all(reference / 2 < lr < reference * 2 for lr in found)


@pytest.mark.parametrize("noise", [0.0, 0.02, 0.1, 0.2])
def test_noise_moves_the_answer_little(noise: float) -> None:
    found = [suggest(curve(noise=noise, seed=seed)).suggested_lr for seed in range(20)]
    lrs = [lr for lr in found if lr is not None]
    assert len(lrs) == 20
    assert max(lrs) / min(lrs) < 8
    assert max(lrs) < 0.1


@given(factor=st.floats(1e-3, 1e3), shift=st.floats(-100, 100), seed=st.integers(0, 5))
@settings(max_examples=60, deadline=None)
def test_units_and_origin_of_the_loss_do_not_matter(factor: float, shift: float, seed: int) -> None:
    points = curve(seed=seed)
    plain, changed = suggest(points), suggest(moved(points, factor, shift))
    assert changed.suggested_lr == pytest.approx(plain.suggested_lr, rel=1e-6)
    assert (changed.diverges_at, changed.flags) == (plain.diverges_at, plain.flags)


@given(scale=st.floats(1e-4, 1e4))
@settings(max_examples=30, deadline=None)
def test_the_answer_moves_with_the_learning_rates(scale: float) -> None:
    points = curve()
    plain = suggest(points)
    changed = suggest([(lr * scale, loss) for lr, loss in points])
    assert changed.suggested_lr == pytest.approx((plain.suggested_lr or 0) * scale, rel=1e-6)


@pytest.mark.parametrize("seed", range(5))
def test_the_box_holds_the_suggestion_and_stays_below_the_explosion(seed: int) -> None:
    result = suggest(curve(seed=seed))
    assert result.suggested_lr is not None
    assert result.low == pytest.approx(result.suggested_lr / 30)
    assert result.high is not None
    assert result.diverges_at is not None
    assert result.suggested_lr < result.high <= result.diverges_at / 1.5


def test_an_outlier_is_no_explosion() -> None:
    points = curve()
    points[30] = (points[30][0], 50.0)
    points[31] = (points[31][0], 50.0)
    result, plain = suggest(points), suggest(curve())
    assert result.diverges_at == plain.diverges_at
    assert result.suggested_lr == pytest.approx(plain.suggested_lr, rel=0.3)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_not_finite_ends_the_curve(value: float) -> None:
    points = curve()[:60]
    ended = [*points[:58], (points[58][0], value), (points[59][0], 0.0)]
    assert explosion([loss for _, loss in ended]) == 58
    result = suggest(ended)
    assert result.diverges_at == points[58][0]
    assert all(math.isfinite(loss) for _, loss in result.points)
    assert LrCurve.model_validate_json(result.model_dump_json()) == result


def refused(result: LrCurve, flag: str) -> bool:
    values = (result.suggested_lr, result.low, result.high)
    assert result.reason.startswith("no suggestion: ")
    return values == (None, None, None) and result.flags == [flag]


@pytest.mark.parametrize("seed", range(10))
def test_a_loss_that_only_wobbles_gets_no_answer(seed: int) -> None:
    assert refused(suggest(curve(drop=0.0, seed=seed)), "noise-dominated")


@pytest.mark.parametrize("seed", range(10))
def test_pure_noise_gets_no_answer(seed: int) -> None:
    assert refused(suggest(curve(drop=0.0, explodes=1e9, seed=seed)), "noise-dominated")


def test_few_points_get_no_answer() -> None:
    assert refused(suggest(curve()[:8]), "too-short")
    assert refused(suggest([(1e-3, 1.0)] * 5 + [(1e-2, math.nan)]), "too-short")


def test_an_explosion_at_once_gets_no_answer() -> None:
    result = suggest([(1e-3, math.nan)])
    assert refused(result, "diverges-everywhere")
    assert result.diverges_at == 1e-3


def test_a_range_that_ends_early_is_flagged() -> None:
    result = suggest(curve(explodes=1e9))
    assert "no-divergence" in result.flags
    assert result.diverges_at is None
    assert result.suggested_lr is not None
    assert result.high == pytest.approx(3 * result.suggested_lr)
    still_falling = suggest(curve(explodes=1e9, high=3e-3))
    assert {"no-divergence", "boundary"} <= set(still_falling.flags)


def test_a_range_that_begins_late_is_noticed() -> None:
    late, right = curve(low=3e-3), curve()
    assert starts_too_high(late)
    assert not starts_too_high(right)
    assert starts_too_high([(0.1, 1.0), (0.2, 2.0), (0.3, math.nan)])


def test_a_loss_that_rises_on_its_way_down_is_flagged() -> None:
    points = curve(drop=2.0, onset=1e-4)
    bump = [
        (lr, loss + 0.9 * math.exp(-((math.log10(lr) + 2.5) ** 2) / 0.02)) for lr, loss in points
    ]
    steeper = [(lr, loss - 0.5 * (lr > 6e-3) * (lr < 0.1)) for lr, loss in bump]
    assert "non-monotone" in suggest(steeper).flags
    assert "non-monotone" not in suggest(points).flags


def test_curves_grow_monotonically_in_the_learning_rate() -> None:
    assert all(one < other for (one, _), (other, _) in pairwise(suggest(curve()).points))
