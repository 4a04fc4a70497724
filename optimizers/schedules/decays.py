"""Schedules that only fall after the warm-up."""

from __future__ import annotations

import math
from dataclasses import dataclass

from optimizers.schedules.base import Schedule, number


def floor(default: float = 0.0) -> float:
    """The number that most schedules end at."""
    value: float = number(default, 0.0, 0.1, "share of the learning rate at the end")
    return value


@dataclass(frozen=True, kw_only=True)
class Constant(Schedule):
    """The full learning rate throughout."""

    name = "constant"

    def decay(self, progress: float) -> float:
        """Always 1."""
        return 1.0

    @property
    def needs_total_steps(self) -> bool:
        """Only the warm-up needs it."""
        return self.warmup > 0


@dataclass(frozen=True, kw_only=True)
class Linear(Schedule):
    """A straight line to zero, or to ``floor``."""

    name = "linear"
    floor: float = floor()

    def decay(self, progress: float) -> float:
        """A straight line."""
        return 1 - (1 - self.floor) * progress


@dataclass(frozen=True, kw_only=True)
class Polynomial(Schedule):
    """``(1 - progress)^power`` to zero, or to ``floor``."""

    name = "polynomial"
    power: float = number(
        2.0, 0.5, 4.0, "exponent; 1 is linear", log=True, at_least=1e-3, at_most=100.0
    )
    floor: float = floor()

    def decay(self, progress: float) -> float:
        """A power of what is left of the run."""
        return self.floor + (1 - self.floor) * float((1 - progress) ** self.power)


@dataclass(frozen=True, kw_only=True)
class Cosine(Schedule):
    """Half a cosine from 1 to ``floor`` (Loshchilov and Hutter, SGDR, ICLR 2017)."""

    name = "cosine"
    floor: float = floor()

    def decay(self, progress: float) -> float:
        """Half a cosine."""
        return self.floor + (1 - self.floor) * (1 + math.cos(math.pi * progress)) / 2


@dataclass(frozen=True, kw_only=True)
class WarmupCosine(Cosine):
    """The cosine after a linear warm-up, the usual choice for transformers."""

    name = "warmup_cosine"
    warmup: float = number(0.05, 0.01, 0.1, "share of the steps in which the learning rate rises")


@dataclass(frozen=True, kw_only=True)
class WarmupStableDecay(Schedule):
    """Warm-up, the full learning rate, and a fall over the last ``cooldown`` of the run.

    Hägele et al., "Scaling Laws and Compute-Optimal Training Beyond Fixed Training Durations",
    2024, https://arxiv.org/abs/2405.18392: a power of 0.5 ("1 - sqrt") beats the straight line.
    """

    name = "warmup_stable_decay"
    warmup: float = number(0.02, 0.0, 0.1, "share of the steps in which the learning rate rises")
    cooldown: float = number(
        0.2, 0.1, 0.5, "share of the run after the warm-up in which the learning rate falls",
        at_least=1e-6, source="Hägele et al. 2024: 10 to 20 percent",
    )  # fmt: skip
    power: float = number(
        1.0, 0.5, 2.0, "shape of the fall: 1 is a line, 0.5 is 1 - sqrt", log=True,
        at_least=1e-3, at_most=100.0,
    )  # fmt: skip
    floor: float = floor()

    def decay(self, progress: float) -> float:
        """Flat, then down by a power of the share of the cooldown that is over."""
        over = max(0.0, (progress - (1 - self.cooldown)) / self.cooldown)
        return 1 - (1 - self.floor) * float(min(1.0, over) ** self.power)


@dataclass(frozen=True, kw_only=True)
class InverseSqrt(Schedule):
    """Falls as one over the root of the time, counted in units of ``timescale``.

    With ``timescale = warmup / (1 - warmup)`` it is the schedule of Vaswani et al., "Attention Is
    All You Need", 2017.
    """

    name = "inverse_sqrt"
    warmup: float = number(0.05, 0.0, 0.1, "share of the steps in which the learning rate rises")
    timescale: float = number(
        0.05, 0.01, 0.2, "share of the run until the learning rate has fallen to 1/sqrt(2)",
        log=True, at_least=1e-9, at_most=1e9,
    )  # fmt: skip

    def decay(self, progress: float) -> float:
        """One over the root of one plus the time."""
        return 1 / math.sqrt(1 + progress / self.timescale)


@dataclass(frozen=True, kw_only=True)
class Exponential(Schedule):
    """Falls geometrically to ``final`` at the end of the run."""

    name = "exponential"
    final: float = number(
        0.01, 1e-3, 0.1, "share of the learning rate at the end", log=True, at_least=1e-12
    )

    def decay(self, progress: float) -> float:
        """A straight line on the log scale."""
        return float(self.final**progress)


@dataclass(frozen=True, kw_only=True)
class Step(Schedule):
    """Multiplies by ``gamma`` after every ``every`` share of the run."""

    name = "step"
    every: float = number(0.3, 0.2, 0.5, "share of the run between two drops", at_least=1e-6)
    gamma: float = number(0.1, 0.05, 0.5, "factor of each drop", log=True)

    def decay(self, progress: float) -> float:
        """One drop per completed share, none at the very end."""
        # the small terms keep 0.3 / 0.1 at three drops
        last = math.ceil(1 / self.every - 1e-9) - 1
        return float(self.gamma ** min(last, math.floor(progress / self.every + 1e-9)))


@dataclass(frozen=True, kw_only=True)
class MultiStep(Schedule):
    """Multiplies by ``gamma`` at each of the ``milestones``, given as shares of the run."""

    name = "multi_step"
    milestones: tuple[float, ...] = (0.5, 0.75)
    gamma: float = number(0.1, 0.05, 0.5, "factor of each drop", log=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        # a study file gives a list
        object.__setattr__(self, "milestones", tuple(self.milestones))
        inside = all(0 < milestone < 1 for milestone in self.milestones)
        if not inside or list(self.milestones) != sorted(self.milestones):
            raise ValueError(
                f"{self.name}: milestones={self.milestones!r} is not valid; allowed: rising "
                "shares of the run, 0 < share < 1"
            )

    def decay(self, progress: float) -> float:
        """One drop per milestone passed."""
        passed = sum(progress >= milestone - 1e-9 for milestone in self.milestones)
        return float(self.gamma**passed)
