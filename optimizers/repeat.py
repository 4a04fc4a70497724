"""A step like the last one: other numbers at most, and tables that hold all parameters.

Of a small model's step, what Python finds out takes longer than all arithmetic. So what one step
found out is kept, and the next one asks first, in a few calls, whether all of it still holds.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from itertools import chain
from math import isfinite
from operator import is_
from typing import NamedTuple

import torch
from torch import Tensor

from optimizers.clipping import APART, Clip
from optimizers.core import State, Values
from optimizers.kernels.kernel import Whole, threads_for
from optimizers.kernels.plan import Plan
from optimizers.kernels.table import Table
from optimizers.schedules import Schedule
from optimizers.scheduling import Group, Reader


class Row(NamedTuple):
    """A group, and how its reader has found it: of this kind, with these parameters."""

    group: Group
    reader: Reader
    kind: object
    params: list[Tensor]
    tables: Sequence[Table]


class Repeat:
    """What a step found out.

    ``key`` are the optimizer's attributes that decided on it, which have to be the same objects;
    ``rows`` its groups; ``absent`` the parameters without a gradient.
    """

    def __init__(
        self, key: tuple[object, ...], clip: Clip, rows: Sequence[Row], absent: Sequence[Tensor]
    ) -> None:
        self.key, self.rows, self.absent, self.bound = key, rows, absent, clip.value
        self.tables = [*chain.from_iterable(row.tables for row in rows)]
        self.largest = max(table.entries for table in self.tables)
        self.threads = threads_for(self.largest)
        self.unchanged = [table.watch.same for table in self.tables if table.watch is not None]
        self.params = [*chain.from_iterable(table.params for table in self.tables)]
        self.wholes = (Whole * len(self.tables))(*(table.whole() for table in self.tables))
        self.arguments = len(self.tables), ctypes.addressof(self.wholes), clip.norm
        self.run = self.tables[0].library.step
        self.told: list[Values] = []

    @classmethod
    def after(
        cls,
        clip: Clip,
        low_precision: str,
        states: dict[Tensor, State],
        groups: list[Group],
        readers: Sequence[Reader],
        plans: Sequence[Plan],
    ) -> Repeat | None:
        """What another step can take over of the one that was just taken.

        None where it has to find out everything again: with parameters that are in no table, rules
        that know all parameters or have a `Core`, and clipping with a scale for each gradient.
        """
        tables = [*chain.from_iterable(plan.tables for plan in plans)]
        whole = all(plan.batch is not None and plan.wish.rule.model is None for plan in plans)
        watches = [table.watch for table in tables if table.watch is not None]
        if not whole or not watches or clip.kind in APART or {*map(type, tables)} != {Table}:
            return None
        rows = [
            Row(group, reader, reader.kind, group["params"], plan.tables)
            for group, reader, plan in zip(groups, readers, plans, strict=True)
        ]
        watches[0].hold([states, groups, *(row.params for row in rows)])
        absent = [*chain.from_iterable(plan.absent for plan in plans)]
        return cls((clip, low_precision, states, groups), clip, rows, absent)

    def values(self, schedule: Schedule | None, total_steps: int | None) -> list[Values] | None:
        """Each group's numbers; None if anything else has changed that decides on a step."""
        found = []
        for group, reader, kind, params, _ in self.rows:
            found.append(reader.values(group, schedule, total_steps))
            if reader.kind is not kind or group["params"] is not params:
                return None
        for same in self.unchanged:
            if not same():
                return None
        if threads_for(self.largest) != self.threads:
            return None
        if self.absent and any(param.grad is not None for param in self.absent):
            return None
        return found

    def step(self, values: list[Values]) -> float | None:
        """Step with these numbers; returns the gradients' norm.

        Does nothing if that is not finite, and returns None.
        """
        if len(self.told) != len(values) or not all(map(is_, values, self.told)):
            self.tell(values)
        norm: float = self.run(*self.arguments)
        if not isfinite(norm):
            return None
        torch.autograd.graph.increment_version(self.params)
        for row in self.rows:
            row.group["schedule_step"] += 1
        return norm

    def tell(self, values: list[Values]) -> None:
        """Give each table the numbers of its group."""
        for row, own in zip(self.rows, values, strict=True):
            for table in row.tables:
                maximize = row.group["maximize"]
                table.ready(table.kernel, own, self.bound, maximize=maximize, advance=True)
        self.told = values
