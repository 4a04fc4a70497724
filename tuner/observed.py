"""What runs have shown the sampler, and the scale on which their scores are compared."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tuner.records import Direction
from tuner.space import Point

Array = NDArray[np.float64]

_EITHER_SIDE = 2.2  # deviations: with 1.96 the best of several estimates is covered by 88-97 %
_CAP = 10.0  # of the distance from the best to the median: everything beyond is as bad


@dataclass(frozen=True)
class Observation:
    """A point and its result; `value=None` for a run that diverged or failed.

    `pruned_at` is the step at which early stopping ended the run, None for a run to its end.
    `length` is the share of a full trial that the run was planned for.
    """

    point: Point
    value: float | None
    pruned_at: int | None = None
    length: float = 1.0


def finite_values(seen: Sequence[Observation], direction: Direction) -> list[float]:
    """Every observation's value, a missing one replaced by finite and worse than the worst."""
    sign = 1.0 if direction == "minimize" else -1.0
    known = [o.value for o in seen if o.value is not None and math.isfinite(o.value)]
    worst = max((sign * v for v in known), default=0.0)
    best = min((sign * v for v in known), default=0.0)
    missing = sign * (worst + max(worst - best, abs(worst), 1.0))
    return [o.value if o.value is not None and math.isfinite(o.value) else missing for o in seen]


@dataclass(frozen=True)
class Warp:
    """A scale on which differences among good runs count, and how bad a bad run is does not.

    The logarithm of the distance to the best, in units of the median's, up to `_CAP`; a run without
    a value lies a step beyond. Values are signed so that small ones are good.
    """

    sign: float
    best: float
    unit: float

    @classmethod
    def of(cls, seen: Sequence[Observation], sign: float) -> Warp:
        """The scale of these runs, from their best and their median."""
        known = [sign * o.value for o in seen if o.value is not None and math.isfinite(o.value)]
        best = min(known, default=0.0)
        return cls(sign, best, (statistics.median(known) - best if known else 0.0) or 1.0)

    def __call__(self, seen: Sequence[Observation]) -> Array:
        """The scaled values; a pruned run is at least as bad as the median of its length."""
        ends: dict[float, list[float]] = {}
        for o in seen:
            if o.pruned_at is None and o.value is not None:
                ends.setdefault(o.length, []).append(self.sign * o.value)
        typical = {length: statistics.median(values) for length, values in ends.items()}
        scaled = []
        for o in seen:
            if o.value is None or not math.isfinite(o.value):
                scaled.append(math.log1p(_CAP) + 0.5)
                continue
            value = self.sign * o.value
            if o.pruned_at is not None:
                value = max(value, typical.get(o.length, value))
            scaled.append(math.log1p(min((value - self.best) / self.unit, _CAP)))
        return np.array(scaled)

    def back(self, scaled: float) -> float:
        """The signed value at a place of the scale."""
        return self.best + self.unit * math.expm1(scaled)

    def mean(self, scaled: float, deviation: float, noise: float) -> tuple[float, float, float]:
        """The signed mean of runs around an uncertain place of the scale, and its interval.

        What seeds add and take on a logarithmic scale does not cancel on that of the values: their
        mean lies half a variance above the middle of the scale, as that of a lognormal does.
        """
        place, either_side = scaled + noise**2 / 2, _EITHER_SIDE * deviation
        return self.back(place), self.back(place - either_side), self.back(place + either_side)
