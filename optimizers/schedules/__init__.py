"""Learning-rate schedules as closed forms of progress.

A schedule is a small frozen object: ``schedule.factor(step, total_steps)`` multiplies the
learning rate of the step with that index (from 0). A warm-up precedes any of them: it rises over
``warmup·total_steps`` steps, its first step is not zero, and ``decay(progress)`` then runs over
the rest with progress in [0, 1]. After ``total_steps`` the factor stays where it ended. Nothing
is recursive, so resuming needs the step, and for `Plateau` the memory of the reported metrics.

    schedules.create("warmup_cosine", warmup=0.05)   # by name
    schedules.warmup_cosine(warmup=0.05)             # the same

Each number carries its search range (`Schedule.numbers`), as an optimizer's hyperparameters do.
"""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from optimizers.schedules.base import Schedule
from optimizers.schedules.cycles import CosineRestarts, OneCycle
from optimizers.schedules.decays import (
    Constant,
    Cosine,
    Exponential,
    InverseSqrt,
    Linear,
    MultiStep,
    Polynomial,
    Step,
    WarmupCosine,
    WarmupStableDecay,
)
from optimizers.schedules.metric import Plateau
from optimizers.schedules.scheduler import ScheduleLR, to_lr_scheduler

constant = Constant
warmup_cosine = WarmupCosine
cosine = Cosine
cosine_restarts = CosineRestarts
linear = Linear
polynomial = Polynomial
warmup_stable_decay = WarmupStableDecay
inverse_sqrt = InverseSqrt
exponential = Exponential
step = Step
multi_step = MultiStep
one_cycle = OneCycle
plateau = Plateau

SCHEDULES: dict[str, type[Schedule]] = {
    kind.name: kind
    for kind in (
        Constant,
        WarmupCosine,
        Cosine,
        CosineRestarts,
        Linear,
        Polynomial,
        WarmupStableDecay,
        InverseSqrt,
        Exponential,
        Step,
        MultiStep,
        OneCycle,
        Plateau,
    )
}

__all__ = ["SCHEDULES", "Schedule", "ScheduleLR", "create", "names", "to_lr_scheduler", *SCHEDULES]


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


def create(name: str, **settings: Any) -> Schedule:
    """A schedule by name; raises ValueError for an unknown name or setting, or a bad value."""
    kind = get_schedule(name)
    known = [item.name for item in fields(kind)]
    unknown = settings.keys() - set(known)
    if unknown:
        raise ValueError(f"schedule {name!r} has no {min(unknown)!r}; allowed: {', '.join(known)}")
    return kind(**settings)
