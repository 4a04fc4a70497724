"""Learning-rate schedules as closed forms of progress.

A schedule is a small frozen object: ``schedule.factor(step, total_steps)`` multiplies the
learning rate of the step with that index (from 0). A linear warm-up precedes any of them: it
rises over ``warmup·total_steps`` steps, its first step is not zero, and ``decay(progress)`` then
runs over the rest with progress in [0, 1]. After ``total_steps`` the factor stays where it ended.
Nothing is recursive, so resuming needs the step only.

    schedules.create("warmup_cosine", warmup=0.05)   # by name
    schedules.warmup_cosine(warmup=0.05)             # the same

Each number carries its search range (`numbers`), as an optimizer's hyperparameters do.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar

import torch
from torch.optim.lr_scheduler import LambdaLR

from optimizers.core import Hyper


def number(
    default: float, low: float, high: float, doc: str, *, log: bool = False,
    at_least: float = 0.0, at_most: float = 1.0,
) -> Any:  # fmt: skip
    """A dataclass field for one number of a schedule, with its search range."""
    row = Hyper(default, low, high, log, doc, priority=2, at_least=at_least, at_most=at_most)
    return field(default=default, metadata={"hyper": row})


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """Base of all schedules: the warm-up, and the contract that ``decay`` fills in."""

    name: ClassVar[str]
    warmup: float = number(0.0, 0.0, 0.1, "share of the steps in which the learning rate rises")

    def __post_init__(self) -> None:
        for key, row in self.numbers().items():
            row.validate(self.name, key, getattr(self, key))

    @classmethod
    def numbers(cls) -> dict[str, Hyper]:
        """The schedule's numbers with default, search range and meaning."""
        return {item.name: item.metadata["hyper"] for item in fields(cls)}

    def decay(self, progress: float) -> float:
        """The factor after the warm-up, for progress in [0, 1]; at most 1, at least 0."""
        raise NotImplementedError

    def warmup_steps(self, total_steps: int) -> int:
        """Number of steps with a reduced learning rate at the beginning."""
        return round(self.warmup * total_steps)

    def factor(self, step: int, total_steps: int) -> float:
        """The learning rate's factor at a step (from 0) of a run of ``total_steps``."""
        warmup_steps = self.warmup_steps(total_steps)
        if step < warmup_steps:
            return (step + 1) / (warmup_steps + 1) * self.decay(0.0)
        return self.decay(min(1.0, (step - warmup_steps) / max(1, total_steps - warmup_steps)))

    def momentum(self, step: int, total_steps: int) -> float | None:
        """What momentum or beta1 is at a step, for schedules that cycle it; otherwise None."""
        return None

    @property
    def needs_total_steps(self) -> bool:
        """Whether the schedule is undefined without knowing the length of the run."""
        return True


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
class Cosine(Schedule):
    """Half a cosine from 1 to ``floor`` (Loshchilov and Hutter, SGDR, ICLR 2017)."""

    name = "cosine"
    floor: float = number(0.0, 0.0, 0.1, "share of the learning rate at the end")

    def decay(self, progress: float) -> float:
        """Half a cosine."""
        return self.floor + (1 - self.floor) * (1 + math.cos(math.pi * progress)) / 2


@dataclass(frozen=True, kw_only=True)
class WarmupCosine(Cosine):
    """The cosine after a linear warm-up, the usual choice for transformers."""

    name = "warmup_cosine"
    warmup: float = number(0.05, 0.01, 0.1, "share of the steps in which the learning rate rises")


@dataclass(frozen=True, kw_only=True)
class Step(Schedule):
    """Multiplies by ``gamma`` after every ``every`` share of the run."""

    name = "step"
    every: float = number(0.3, 0.2, 0.5, "share of the run between two drops", at_least=1e-6)
    gamma: float = number(0.1, 0.05, 0.5, "factor of each drop", log=True)

    def decay(self, progress: float) -> float:
        """One drop per completed share; the guard keeps 0.3 / 0.1 at three drops."""
        return float(self.gamma ** math.floor(progress / self.every + 1e-9))


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


constant = Constant
cosine = Cosine
warmup_cosine = WarmupCosine
step = Step
exponential = Exponential

SCHEDULES: dict[str, type[Schedule]] = {
    kind.name: kind for kind in (Constant, WarmupCosine, Cosine, Step, Exponential)
}


def names() -> list[str]:
    """Names of all schedules."""
    return list(SCHEDULES)


def get_schedule(name: str) -> type[Schedule]:
    """The class of a schedule; raises ValueError naming the schedules there are."""
    try:
        return SCHEDULES[name]
    except KeyError:
        allowed = ", ".join(SCHEDULES)
        raise ValueError(f"schedule {name!r} is not known; allowed: {allowed}") from None


def create(name: str, **numbers: float) -> Schedule:
    """A schedule by name; raises ValueError for an unknown name or number, or a bad value."""
    kind = get_schedule(name)
    unknown = numbers.keys() - kind.numbers().keys()
    if unknown:
        allowed = ", ".join(kind.numbers())
        raise ValueError(f"schedule {name!r} has no {sorted(unknown)[0]!r}; allowed: {allowed}")
    return kind(**numbers)


@dataclass(frozen=True)
class FactorOf:
    """``step -> factor`` for torch; picklable, unlike a closure."""

    schedule: Schedule
    total_steps: int

    def __call__(self, step: int) -> float:
        """The factor at a step."""
        return self.schedule.factor(step, self.total_steps)


def to_lr_scheduler(
    optimizer: torch.optim.Optimizer, schedule: Schedule, total_steps: int, last_epoch: int = -1
) -> LambdaLR:
    """The schedule as a torch LRScheduler for any optimizer; ``step()`` it after every batch."""
    factor: Callable[[int], float] = FactorOf(schedule, total_steps)
    return LambdaLR(optimizer, factor, last_epoch)
