"""From (learning rate, loss) pairs to a suggestion: pure functions on numbers, no training.

Every threshold is a difference of losses in units of the curve's own noise and drop, because a loss
may be negative or start anywhere. Smoothing is centred: a lagging average would move the minimum up
by one to two decades. Losses are capped before smoothing, so that an explosion does not spread.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tuner.records import LrCurve

Array = NDArray[np.float64]
Points = Sequence[tuple[float, float]]

MIN_POINTS = 12
# Bandwidth of the centred smoothing, in decades of the learning rate.
BANDWIDTH = 0.12
# A loss this many standard deviations away is not there by chance.
NOISE_LIMIT = 6.0
# Consecutive points that must agree that the loss has exploded.
CONFIRMATIONS = 3
# Below the divergence by at least this factor: a whole run is longer than the test.
SAFETY = 3.0
# Share of the way from the onset of learning to the lowest loss, on the log scale. The test's short
# steps favour high rates: Lion's lowest loss lies a decade above the best rate of a real run.
ASCENT = 1 / 3


@dataclass(frozen=True)
class Shape:
    """What a curve looks like. Indices refer to the points before the explosion."""

    lrs: Array
    smooth: Array
    start: float  # loss where the learning rate does nothing yet
    noise: float  # standard deviation of one batch's loss
    drop: float  # how far the smoothed loss falls below `start`
    lowest: int  # the loss first comes close to its lowest; on a plateau that is its beginning
    onset: int  # the loss has fallen by a tenth of the drop
    diverges_at: float | None

    @property
    def smooth_noise(self) -> float:
        """Standard deviation of the smoothed loss, from the number of points that it averages."""
        decades = math.log10(self.lrs[-1] / self.lrs[0])
        points = 2 * math.sqrt(math.pi) * BANDWIDTH * len(self.lrs) / max(decades, BANDWIDTH)
        return self.noise / math.sqrt(max(points, 1.0))

    @property
    def falls_at_once(self) -> bool:
        """Whether the loss moves from the first learning rates on: the range begins too high."""
        eighth = len(self.lrs) // 8
        fall = float(self.smooth[0] - self.smooth[eighth])
        moving = fall > max(NOISE_LIMIT * self.smooth_noise, 0.1 * self.drop)
        return moving or self.onset < len(self.lrs) // 10

    @property
    def learns(self) -> bool:
        """Whether the loss falls by more than chance."""
        return self.drop > NOISE_LIMIT * self.smooth_noise


def explosion(losses: Sequence[float], known_noise: float = 0.0) -> int | None:
    """Index from which the loss is lost for good: not finite, or all that was gained is gone.

    The limit is where the loss started plus its noise; half of the gain counts as gone already.
    The noise is estimated from the first losses, and at least `known_noise`.
    """
    values = np.asarray(losses, dtype=np.float64)
    finite = np.isfinite(values)
    end = len(values) if finite.all() else int(np.argmin(finite))
    if end >= MIN_POINTS // 2:
        calm = _median3(values[:end])
        start, noise = _level(values[:end], known_noise)
        best = np.minimum.accumulate(calm)
        limit = best + np.maximum(0.5 * (start - best), 0.0) + NOISE_LIMIT * noise
        above = calm > limit
        run = np.convolve(above, np.ones(CONFIRMATIONS), mode="valid") == CONFIRMATIONS
        if run.any():
            return int(np.argmax(run))
    return None if end == len(values) else end


def shape(points: Points, known_noise: float = 0.0) -> Shape:
    """Measure a curve of at least MIN_POINTS points before its explosion."""
    lrs, losses = (np.array(column, dtype=np.float64) for column in zip(*points, strict=True))
    end = explosion(losses.tolist(), known_noise)
    diverges_at = None if end is None else float(lrs[end])
    lrs, losses = lrs[:end], losses[:end]
    start, noise = _level(losses, known_noise)
    calm = _median3(losses)
    cap = start + max(start - float(calm.min()), NOISE_LIMIT * noise)
    smooth = _smoothed(np.log10(lrs), np.minimum(losses, cap))
    bottom = float(smooth.min())
    drop = start - bottom
    lowest = int(np.argmax(smooth <= bottom + 0.05 * drop))
    flat = np.flatnonzero(smooth[: lowest + 1] > start - 0.1 * drop)
    return Shape(
        lrs=lrs,
        smooth=smooth,
        start=start,
        noise=noise,
        drop=drop,
        lowest=lowest,
        onset=int(flat[-1]) if len(flat) else 0,
        diverges_at=diverges_at,
    )


def _level(losses: Array, known_noise: float) -> tuple[float, float]:
    """Loss at the start and the noise of one batch, from the first third; robust to outliers."""
    head = losses[: max(5, len(losses) // 3)]
    steps = np.abs(np.diff(head))
    noise = float(np.median(steps)) / (0.6745 * math.sqrt(2)) if len(steps) else 0.0
    start = float(np.median(losses[: max(3, len(losses) // 8)]))
    return start, max(noise, known_noise, 1e-7 * abs(start), 1e-12)


def _median3(values: Array) -> Array:
    padded = np.concatenate([values[:1], values, values[-1:]])
    windows = np.lib.stride_tricks.sliding_window_view(padded, 3)
    return np.asarray(np.median(windows, axis=1), dtype=np.float64)


def _smoothed(x: Array, y: Array) -> Array:
    """Local linear regression with a Gaussian kernel: centred, and unbiased at the ends."""
    distance = x[:, None] - x[None, :]
    weights = np.exp(-0.5 * (distance / BANDWIDTH) ** 2)
    s0 = weights.sum(1)
    s1 = (weights * distance).sum(1)
    s2 = (weights * distance**2).sum(1)
    kernel = weights * (s2[:, None] - s1[:, None] * distance)
    return np.asarray((kernel * y).sum(1) / (s0 * s2 - s1**2), dtype=np.float64)


def suggest(points: Points) -> LrCurve:
    """What a range test says: a learning rate and a search box, or why there is no honest answer.

    The suggestion lies a third of the way, on the log scale, from where the loss begins to fall to
    where it is lowest, and at least SAFETY below the explosion. Flags: "diverges-everywhere" and
    "too-short" (too few points before the explosion), "noise-dominated" (the loss does not fall by
    more than noise) refuse; "no-divergence", "boundary" (the answer is at an end of the range) and
    "non-monotone" (the loss rises on its way down) only warn. The result keeps the finite points.
    """
    usable = explosion([loss for _, loss in points])
    count = len(points) if usable is None else usable
    diverges_at = None if usable is None else points[usable][0]
    if count == 0:
        return refusal(points, diverges_at, "diverges-everywhere", "no step had a finite loss")
    if count < MIN_POINTS:
        reason = f"only {count} points before the loss explodes, {MIN_POINTS} are needed"
        return refusal(points, diverges_at, "too-short", reason)
    curve = shape(points)
    if not curve.learns:
        reason = (
            f"the loss falls by {curve.drop:.2g} and its noise is {curve.noise:.2g}: "
            "use a larger batch or more steps"
        )
        return refusal(points, diverges_at, "noise-dominated", reason)
    onset, lowest = curve.lrs[curve.onset], curve.lrs[curve.lowest]
    between = onset ** (1 - ASCENT) * lowest**ASCENT
    ceiling = math.inf if diverges_at is None else diverges_at / SAFETY
    suggested = float(min(between, ceiling))
    high = min(3 * suggested, math.inf if diverges_at is None else diverges_at / 1.5)
    end = "does not explode" if diverges_at is None else f"explodes at {diverges_at:.2g}"
    return LrCurve(
        points=_finite(points),
        suggested_lr=suggested,
        low=suggested / 30,
        high=high,
        diverges_at=diverges_at,
        flags=_flags(curve),
        reason=f"the loss falls from {onset:.2g} on, is lowest at {lowest:.2g} and {end}",
    )


def starts_too_high(points: Points, known_noise: float = 0.0) -> bool:
    """Whether the loss falls or explodes before the learning rate was low enough to do nothing."""
    losses = [loss for _, loss in points]
    end = explosion(losses, known_noise)
    if (len(losses) if end is None else end) < MIN_POINTS:
        return end is not None
    curve = shape(points, known_noise)
    return curve.learns and curve.falls_at_once


def _flags(curve: Shape) -> list[str]:
    falling = curve.smooth[: int(np.argmin(curve.smooth)) + 1]
    rise = float(np.max(falling - np.minimum.accumulate(falling)))
    ends_falling = curve.diverges_at is None and len(falling) == len(curve.smooth)
    found = {
        "no-divergence": curve.diverges_at is None,
        "boundary": curve.falls_at_once or ends_falling,
        "non-monotone": rise > max(NOISE_LIMIT * curve.smooth_noise, 0.1 * curve.drop),
    }
    return [flag for flag, is_so in found.items() if is_so]


def refusal(points: Points, diverges_at: float | None, flag: str, reason: str) -> LrCurve:
    """No suggestion: one flag and the reason."""
    return LrCurve(
        points=_finite(points),
        suggested_lr=None,
        low=None,
        high=None,
        diverges_at=diverges_at,
        flags=[flag],
        reason=f"no suggestion: {reason}",
    )


def _finite(points: Points) -> list[tuple[float, float]]:
    """Points that every database and JSON reader can hold; `diverges_at` tells of the others."""
    return [(lr, loss) for lr, loss in points if math.isfinite(loss)]
