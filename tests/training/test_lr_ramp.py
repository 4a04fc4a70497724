"""The ramp moves its range until the answer is inside, and says so when it is nowhere."""

from collections.abc import Callable, Iterator

import pytest

from tuner.lr_ramp import HIGH, LOW, ladder, quick


def test_the_ladder_is_even_and_goes_on() -> None:
    rates = ladder(1e-4, 1e-1, 4)
    assert [next(rates) for _ in range(5)] == pytest.approx([1e-4, 1e-3, 1e-2, 1e-1, 1.0])
    assert max(ladder(LOW, HIGH, 50)) <= 1e4 * 1.01


def ramp_of(
    explodes: float, learns: float
) -> Callable[[Iterator[float]], list[tuple[float, float]]]:
    """A problem without noise, that learns from one rate on and explodes at another."""

    def ramp(lrs: Iterator[float]) -> list[tuple[float, float]]:
        points = []
        for index, lr in enumerate(lrs):
            noise = 1e-3 * (-1) ** index
            points.append((lr, noise + (1.0 - 0.8 / (1 + (learns / lr) ** 2))))
            if lr > explodes:
                return [*points[:-1], (lr, float("nan"))]
        return points

    return ramp


@pytest.mark.parametrize("explodes", [1e-9, 1e-7, 1e-3, 1.0, 300.0, 5e3])
def test_the_range_moves_to_where_the_answer_is(explodes: float) -> None:
    curve = quick(ramp_of(explodes, explodes / 100), 1e-6, 1e-1, 120)
    assert curve.suggested_lr is not None, curve.reason
    assert explodes / 300 < curve.suggested_lr < explodes / 2.9
    assert explodes <= (curve.diverges_at or 0) < explodes * 1.5


def test_no_explosion_anywhere_is_said() -> None:
    curve = quick(ramp_of(1e9, 1e-3), LOW, HIGH, 120)
    assert "no-divergence" in curve.flags
    assert curve.suggested_lr is not None


def test_an_explosion_everywhere_is_said() -> None:
    curve = quick(lambda lrs: [(next(lrs), float("nan"))], LOW, HIGH, 120)
    assert curve.flags == ["diverges-everywhere"]
    assert curve.suggested_lr is None
