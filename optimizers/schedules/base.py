"""What a schedule is: the warm-up, the contract of ``decay``, and its numbers as data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from types import MappingProxyType
from typing import Any, ClassVar

from optimizers.core import Hyper

EMPTY: Mapping[str, float] = MappingProxyType({})


def number(
    default: float, low: float, high: float, doc: str, *, log: bool = False,
    integer: bool = False, at_least: float = 0.0, at_most: float = 1.0, source: str = "",
) -> Any:  # fmt: skip
    """A dataclass field for one number of a schedule, with its search range."""
    row = Hyper(
        default, low, high, log, doc, integer=integer, priority=2,
        at_least=at_least, at_most=at_most, source=source,
    )  # fmt: skip
    return field(default=default, metadata={"hyper": row})


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """Base of all schedules; a schedule fills in ``decay``, and its fields are its numbers.

    Most are functions of the step alone. One that also depends on reported metrics keeps what it
    has seen in a flat dict of floats, which the caller stores and hands back as ``memory``.
    """

    name: ClassVar[str]
    warmup: float = number(0.0, 0.0, 0.1, "share of the steps in which the learning rate rises")

    def __post_init__(self) -> None:
        for key, row in self.numbers().items():
            row.validate(self.name, key, getattr(self, key))

    @classmethod
    def numbers(cls) -> dict[str, Hyper]:
        """The schedule's numbers with default, search range and meaning."""
        rows = {item.name: item.metadata.get("hyper") for item in fields(cls)}
        return {name: row for name, row in rows.items() if row is not None}

    def decay(self, progress: float) -> float:
        """The factor after the warm-up, for progress in [0, 1]; at most 1, at least 0."""
        raise NotImplementedError

    def rise(self, share: float) -> float:
        """The factor in the warm-up, for a share of it in (0, 1): a straight line."""
        return share * self.decay(0.0)

    def warmup_steps(self, total_steps: int) -> int:
        """Number of steps with a reduced learning rate at the beginning."""
        return round(self.warmup * total_steps)

    def progress(self, step: int, total_steps: int) -> float:
        """How much of the time after the warm-up is over at a step, in [0, 1]."""
        warmup_steps = self.warmup_steps(total_steps)
        past = min(step, total_steps) - warmup_steps
        return max(0, past) / max(1, total_steps - warmup_steps)

    def factor(self, step: int, total_steps: int, memory: Mapping[str, float] = EMPTY) -> float:
        """The learning rate's factor at a step (from 0) of a run of ``total_steps``."""
        warmup_steps = self.warmup_steps(total_steps)
        if step < warmup_steps:
            return self.rise((step + 1) / (warmup_steps + 1))
        return self.decay(self.progress(step, total_steps))

    def momentum(self, step: int, total_steps: int) -> float | None:
        """What momentum or beta1 is at a step, for schedules that cycle it; otherwise None."""
        return None

    def observe(self, memory: Mapping[str, float], metric: float) -> dict[str, float]:
        """The memory after a metric was reported; raises TypeError for schedules without one."""
        raise TypeError(f"schedule {self.name!r} takes no metrics; allowed: plateau")

    @property
    def needs_total_steps(self) -> bool:
        """Whether the schedule is undefined without knowing the length of the run."""
        return True
