"""From held-out losses of short runs to the learning rate of a whole run: pure, no training.

Short runs favour high learning rates. The bias is measured, not assumed away: the best rates of two
horizons give a slope over the logarithm of the horizon, and the line goes on to the length of the
run. A slope from two noisy points is uncertain, so it is shrunk towards what other tasks showed
(`SLOPE`, measured by `benchmarks/lr_finder.py`); the interval carries both uncertainties.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

# Decades of the best learning rate for each decade of the horizon: mean and standard deviation.
SLOPE, SLOPE_SD = -0.35, 0.3
# How well one horizon tells its own best rate, in decades, beside what the batches show.
LOCATION_SD = 0.15
# What a straight line over the horizon misses, in decades for each decade.
CURVATURE_SD = 0.1
# A best rate at the end of what was tried may lie beyond it.
UNBRACKETED_SD = 0.3
# The larger of two rises counts for so many of the smaller: beyond the best rate is a cliff.
CLIFF = 5.0
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


@dataclass(frozen=True)
class Answer:
    """The best learning rate of a whole run, in log10, its standard deviation and the slope."""

    log_lr: float
    sd: float
    slope: float

    @property
    def interval(self) -> tuple[float, float]:
        """Ends of the 80 % interval, in log10."""
        return self.log_lr - Z80 * self.sd, self.log_lr + Z80 * self.sd


def vertex(xs: Sequence[float], ys: Sequence[float]) -> float:
    """The minimum of the parabola through three points, the middle one the lowest.

    The larger rise is cut at CLIFF times the smaller one. Adding to the losses or multiplying them
    changes nothing.
    """
    a, b, c = xs
    if not math.isfinite(min(ys[0], ys[2])):
        return b
    rises = np.asarray(ys, dtype=np.float64) - ys[1]
    limit = CLIFF * float(min(rises[0], rises[2]))
    left, right = min(float(rises[0]), limit), min(float(rises[2]), limit)
    below = (b - a) * right + (c - b) * left
    if not below > 0:  # three equal losses
        return b
    found = b - 0.5 * ((b - a) ** 2 * -right + (c - b) ** 2 * left) / -below
    return min(max(found, a), c)


def lowest(xs: Sequence[float], ys: Sequence[float]) -> tuple[float, bool]:
    """Where sampled losses are lowest, and whether that is between two of them."""
    best = int(np.argmin(ys))
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


def extrapolate(optima: Sequence[Optimum], run_steps: int) -> Answer:
    """The best rate at `run_steps`: a line over log10(horizon), its slope shrunk towards SLOPE."""
    t = np.array([math.log10(each.horizon / run_steps) for each in optima])
    x = np.array([each.log_lr for each in optima])
    noise = np.array([each.sd**2 for each in optima]) + (CURVATURE_SD * t) ** 2
    design = np.stack([np.ones_like(t), t], axis=1)
    precision = design.T @ (design / noise[:, None])
    precision[1, 1] += 1 / SLOPE_SD**2
    right = design.T @ (x / noise)
    right[1] += SLOPE / SLOPE_SD**2
    mean = np.linalg.solve(precision, right)
    variance = np.linalg.inv(precision)[0, 0]
    return Answer(float(mean[0]), math.sqrt(float(variance)), float(mean[1]))


def improvement(before: Array, after: Array) -> tuple[float, float]:
    """How far the loss of common batches fell, and the standard error of that."""
    fall = before - after
    spread = float(np.std(fall, ddof=1)) if len(fall) > 1 else 0.0
    return float(fall.mean()), spread / math.sqrt(len(fall))
