"""From held-out losses of short runs to the learning rate of a whole run: pure, no training.

Short runs favour high learning rates, by how much depends on the rule. An update that follows the
gradient is limited by curvature, which does not know how long a run is: slope 0 over the logarithm
of the length. An update of fixed length has to cover the distance to the minimum and then to settle
there: between -1, where only the distance counts, and -1/2, where noise does. Two horizons do not
tell more than that: the slope between them does not predict the one after them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

# Decades of the best learning rate for each decade of the horizon, of an update of fixed length,
# and how far single tasks are from that.
FIXED_SLOPE, SLOPE_SD = -0.6, 0.3
# The same from a few steps to many, whatever the rule: so few steps favour high rates everywhere.
START_SLOPE = -0.25
# How well one horizon tells its own best rate, in decades, beside what the batches show.
LOCATION_SD = 0.1
# A best rate at the end of what was tried may lie beyond it.
UNBRACKETED_SD = 0.3
# The larger of two rises counts for so many of the smaller: beyond the best rate is a cliff.
CLIFF = 5.0
# Losses that differ by less than this share are equal but for rounding: Adafactor caps its rate.
EQUAL = 1e-6
RESAMPLES = 200
Z80 = 1.2816  # the 90th percentile of the normal distribution


@dataclass(frozen=True)
class Optimum:
    """The best learning rate of one horizon, in log10; `sd` in decades.

    `bracketed` says whether both a lower and a higher rate were worse.
    """

    horizon: int
    log_lr: float
    sd: float
    bracketed: bool

    @property
    def interval(self) -> tuple[float, float]:
        """Ends of the 80 % interval, in log10."""
        return self.log_lr - Z80 * self.sd, self.log_lr + Z80 * self.sd


def vertex(xs: Sequence[float], ys: Sequence[float]) -> float:
    """The minimum of the parabola through three points, the middle one the lowest.

    The larger rise is cut at CLIFF times the smaller one. Of unequal distances the smaller one
    counts for both, because the loss may have risen anywhere on the way. Adding to the losses or
    multiplying them changes nothing.
    """
    a, b, c = xs
    if not math.isfinite(min(ys[0], ys[2])):
        return b
    left, right = ys[0] - ys[1], ys[2] - ys[1]
    limit = CLIFF * min(left, right)
    left, right = min(left, limit), min(right, limit)
    if not left + right > 0:  # three equal losses
        return b
    return b + 0.5 * min(b - a, c - b) * (left - right) / (left + right)


def best_of(losses: Sequence[float]) -> int:
    """Index of the lowest loss; of equals the first, which has the lowest rate."""
    least = min(losses)
    return next(k for k, loss in enumerate(losses) if loss <= least + EQUAL * abs(least))


def lowest(xs: Sequence[float], ys: Sequence[float]) -> tuple[float, bool]:
    """Where sampled losses are lowest, and whether that is between two of them."""
    best = best_of(ys)
    if best in (0, len(xs) - 1):
        return xs[best], False
    return vertex(xs[best - 1 : best + 2], ys[best - 1 : best + 2]), True


def locate(horizon: int, log_lrs: Sequence[float], losses: Array, seed: int = 0) -> Optimum:
    """The best rate of a horizon from `losses`, shape (rates, batches); rates ascend.

    All rates were judged by the same batches, so resampling these shows how much of the answer is
    owed to them. Infinite losses are diverged runs.
    """
    found, bracketed = lowest(log_lrs, losses.mean(1).tolist())
    rng = np.random.default_rng(seed)
    batches = losses.shape[1]
    picks = rng.integers(batches, size=(RESAMPLES, batches))
    again = [lowest(log_lrs, losses[:, pick].mean(1).tolist())[0] for pick in picks]
    sd = math.hypot(LOCATION_SD if bracketed else UNBRACKETED_SD, float(np.std(again)))
    return Optimum(horizon, found, sd, bracketed)


def slope(response: float) -> float:
    """Decades of the best rate for each decade of the horizon; see `tuner.lr_response`."""
    return FIXED_SLOPE * (1 - response)


def continued(found: Optimum, horizon: int, slope: float) -> Optimum:
    """The best rate of a longer horizon from that of a shorter one."""
    decades = math.log10(horizon / found.horizon)
    sd = math.hypot(found.sd, SLOPE_SD * decades)
    return Optimum(horizon, found.log_lr + slope * decades, sd, found.bracketed)
