"""From held-out losses of short runs to the learning rate of a whole run: pure, no training.

What one horizon says is a density over rates, not a place: a rate counts by how little it loses
against the best one, exp(-loss / temperature) as in a Gibbs posterior. On a flat stretch the lowest
of a few noisy losses jumps from seed to seed, the mean of the density hardly moves; beside a cliff
the mean keeps away from it; and the width is the uncertainty.

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
FIXED_SLOPE, SLOPE_SD = -0.6, 0.5
# The same from a few steps to many, whatever the rule: so few steps favour high rates everywhere.
START_SLOPE = -0.15
# The temperature, as a share of the gain: differences this small say nothing about a longer run.
NEGLIGIBLE = 0.04
# A rate that loses this share of the gain is out; one at the end that loses less may hide a better.
OUT = 0.1
# How far beyond the rates that were tried a best one at their end may lie, in decades.
BEYOND = 0.25
# Losses that differ by less than this share are equal but for rounding: Adafactor caps its rate,
# and a few examples may have no loss left.
EQUAL = 1e-6
RESOLUTION = 0.01  # decades between the points of a density
LOW_END, HIGH_END = 0.1, 0.9  # of the 80 % interval


@dataclass(frozen=True)
class Belief:
    """Where the best learning rate of one horizon lies.

    `weights` has shape (points,), sums to 1, and belongs to points in log10 of the rate that begin
    at `start` and are RESOLUTION apart. `bracketed` says whether the lowest loss had a higher one
    on either side, or above it only rates that are the same.
    """

    horizon: int
    start: float
    weights: Array
    bracketed: bool

    @property
    def log_lrs(self) -> Array:
        """The points, in log10."""
        return np.asarray(self.start + RESOLUTION * np.arange(len(self.weights)), dtype=np.float64)

    @property
    def log_lr(self) -> float:
        """The mean, in log10."""
        return float(self.log_lrs @ self.weights)

    @property
    def interval(self) -> tuple[float, float]:
        """Ends of the 80 % interval, in log10."""
        below = np.cumsum(self.weights) - self.weights / 2
        low, high = np.interp((LOW_END, HIGH_END), below, self.log_lrs)
        return float(low), float(high)


def are_best(losses: Array, before: Array) -> NDArray[np.bool_]:
    """Which rates have the lowest loss but for rounding: shares count of it, or of the gain.

    The arguments are those of `locate`.
    """
    means = losses.mean(1)
    least = float(means.min())
    equal: NDArray[np.bool_] = means <= least + EQUAL * max(abs(least), before.mean() - least)
    return equal


def best_of(losses: Array, before: Array) -> int:
    """Index of the lowest loss; of equals the first, which has the lowest rate."""
    return int(np.argmax(are_best(losses, before)))


def temperature(losses: Array, before: Array) -> float:
    """How much of the gain is negligible: a share, and what the batches leave uncertain of it.

    The arguments are those of `locate`.
    """
    drops = before - losses[best_of(losses, before)]
    gain = float(drops.mean())
    if not 0 < gain < math.inf:
        return 1.0
    error = float(np.std(drops, ddof=1)) / math.sqrt(len(drops)) if len(drops) > 1 else 0.0
    return min(math.hypot(NEGLIGIBLE, error / gain), 1.0)


def excess(losses: Array, before: Array) -> Array:
    """What each rate loses against the best one, as a share of what that one gains: 0 to 1.

    Adding to all losses or multiplying them changes nothing. The arguments are those of `locate`.
    """
    means = losses.mean(1)
    best = means[best_of(losses, before)]
    gain = before.mean() - best
    if not 0 < gain < math.inf:
        return np.where(means == best, 0.0, 1.0)
    return np.asarray(np.clip((means - best) / gain, 0.0, 1.0), dtype=np.float64)


def locate(
    horizon: int,
    log_lrs: Sequence[float],
    losses: Array,
    before: Array,
    capped: bool = False,
) -> Belief:
    """What the short runs of one horizon say.

    Args:
        log_lrs: ascending, in log10.
        losses: of held-out batches after each run, shape (rates, batches); infinite after a run
            that diverged.
        before: of the same batches before all runs, shape (batches,).
        capped: whether higher rates are the same as the highest one.
    """
    lost, best = excess(losses, before), best_of(losses, before)
    start, end = log_lrs[0] - BEYOND, log_lrs[-1] + BEYOND
    points = start + RESOLUTION * np.arange(1 + round((end - start) / RESOLUTION))
    weights = np.exp(-np.interp(points, log_lrs, lost) / temperature(losses, before))
    return Belief(horizon, start, weights / weights.sum(), 0 < best < len(log_lrs) - (not capped))


def slope(response: float) -> float:
    """Decades of the best rate for each decade of the horizon; see `tuner.lr_response`."""
    return FIXED_SLOPE * (1 - response)


def continued(found: Belief, horizon: int, slope: float) -> Belief:
    """The best rate of a longer horizon from that of a shorter one; the slope is known badly."""
    decades = math.log10(horizon / found.horizon)
    sd = SLOPE_SD * abs(decades) / RESOLUTION
    reach = math.ceil(4 * sd)
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / max(sd, 1e-9)) ** 2)
    weights = np.convolve(found.weights, kernel / kernel.sum())
    start = found.start + slope * decades - reach * RESOLUTION
    return Belief(horizon, start, weights, found.bracketed)
