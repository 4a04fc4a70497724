"""Axis limits that keep what matters visible when some values explode."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from tuner.records import Direction, LrCurve


def loss_limits(curves: Sequence[Sequence[tuple[float, float]]]) -> tuple[float, float]:
    """Limits of the loss axis of range tests: from below the lowest to above the starting loss.

    `curves` holds non-empty lists of (learning rate, finite loss).
    """
    start = max(float(np.median([y for _, y in points[:5]])) for points in curves)
    lowest = min(y for points in curves for _, y in points)
    room = (start - lowest) or abs(start) or 1.0
    return lowest - 0.1 * room, start + 0.4 * room


def lr_lines(curve: LrCurve) -> list[list[tuple[float, float]]]:
    """The lines of a range test, finite parts of (learning rate, loss): ramp, short, long runs."""
    horizons = sorted({horizon for horizon, _, _ in curve.grid})
    of_runs = [[(x, y) for steps, x, y in curve.grid if steps == horizon] for horizon in horizons]
    lines = [[(x, y) for x, y in line if math.isfinite(y)] for line in (curve.points, *of_runs)]
    return [line for line in lines if line]


def robust_limits(values: npt.ArrayLike, direction: Direction) -> tuple[float, float]:
    """Limits that show the better half of the values and as much of the worse as fits.

    The worse end lies at most three times as far from the median as the best value does; what
    lies beyond is to be drawn at the edge and marked. Raises ValueError without values.
    """
    v = np.asarray(values, dtype=float)
    if not v.size:
        raise ValueError("no values to scale an axis by")
    sign = 1.0 if direction == "minimize" else -1.0
    costs = np.sort(sign * v)
    best, median = costs[0], float(np.median(costs))
    reach = median + 3 * (median - best)
    worst = min(costs[-1], reach) if median > best else costs[-1]
    room = 0.06 * (worst - best) or 0.05 * abs(best) or 0.05
    ends = sorted((sign * (best - room), sign * (worst + room)))
    return float(ends[0]), float(ends[1])
