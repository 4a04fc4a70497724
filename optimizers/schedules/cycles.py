"""Schedules that rise again, or that move the momentum along."""

from __future__ import annotations

import math
from dataclasses import dataclass

from optimizers.schedules.base import Schedule, number
from optimizers.schedules.decays import floor


def anneal(start: float, end: float, share: float) -> float:
    """Half a cosine from ``start`` to ``end``."""
    return end + (start - end) * (1 + math.cos(math.pi * share)) / 2


@dataclass(frozen=True, kw_only=True)
class CosineRestarts(Schedule):
    """SGDR: cosines one after the other, each ``growth`` times as long as the one before.

    The last one ends with the run. Loshchilov and Hutter, "SGDR: Stochastic Gradient Descent with
    Warm Restarts", ICLR 2017, https://arxiv.org/abs/1608.03983.
    """

    name = "cosine_restarts"
    cycles: int = number(3, 2, 5, "number of cosines", integer=True, at_least=1, at_most=100)
    growth: float = number(
        2.0, 1.0, 3.0, "length of a cosine over the one before", at_least=1.0, at_most=10.0,
        source="SGDR: 1 and 2",
    )  # fmt: skip
    floor: float = floor()

    def decay(self, progress: float) -> float:
        """The cosine that the run is in, at its own progress."""
        lengths = [self.growth**cycle for cycle in range(self.cycles)]
        left = progress * sum(lengths)
        for length in lengths[:-1]:
            if left < length * (1 - 1e-9):
                return anneal(1.0, self.floor, left / length)
            left = max(0.0, left - length)
        return anneal(1.0, self.floor, min(1.0, left / lengths[-1]))


@dataclass(frozen=True, kw_only=True)
class OneCycle(Schedule):
    """Up over ``warmup``, then down to almost nothing, with the momentum the other way round.

    Momentum, or beta1, falls from ``momentum_high`` to ``momentum_low`` while the learning rate
    rises, and comes back; a momentum of zero stays zero. Smith, Topin, "Super-Convergence", 2018,
    https://arxiv.org/abs/1708.07120, with the cosine phases of fast.ai and torch.
    """

    name = "one_cycle"
    warmup: float = number(0.3, 0.1, 0.45, "share of the steps in which the learning rate rises")
    start: float = number(0.04, 0.01, 0.2, "share of the learning rate at the beginning", log=True,
                          at_least=1e-9, source="torch: 1/25")  # fmt: skip
    floor: float = number(4e-6, 1e-6, 1e-2, "share of the learning rate at the end", log=True,
                          source="torch: 1/25e4")  # fmt: skip
    momentum_low: float = number(
        0.85, 0.8, 0.9, "momentum or beta1 at the top of the learning rate", at_most=0.999999,
        source="Smith and Topin 2018: 0.85",
    )  # fmt: skip
    momentum_high: float = number(
        0.95, 0.9, 0.99, "momentum or beta1 at both ends", at_most=0.999999,
        source="Smith and Topin 2018: 0.95",
    )  # fmt: skip

    def rise(self, share: float) -> float:
        """Half a cosine up."""
        return anneal(self.start, 1.0, share)

    def decay(self, progress: float) -> float:
        """Half a cosine down."""
        return anneal(1.0, self.floor, progress)

    def momentum(self, step: int, total_steps: int) -> float:
        """Half a cosine down, and one up again."""
        warmup_steps = self.warmup_steps(total_steps)
        if step < warmup_steps:
            share = (step + 1) / (warmup_steps + 1)
            return anneal(self.momentum_high, self.momentum_low, share)
        return anneal(self.momentum_low, self.momentum_high, self.progress(step, total_steps))
