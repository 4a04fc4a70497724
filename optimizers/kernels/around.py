"""Parameters whose rule has a `Core`: kernels lead to it and away from it, stack by stack.

The values that go through the core are the only memory it takes beside the core's own, and there is
one stack of them at a time.
"""

from __future__ import annotations

import ctypes
import math
from array import array
from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any, NamedTuple

import torch
from torch import Tensor

from optimizers.core import State, Values
from optimizers.kernels.kernel import Call, Kernel, blocks, threads_for
from optimizers.kernels.table import POINTER, Signature, Table
from optimizers.kernels.watch import address

WORD = 8  # bytes of an address or number in a table


class Stack(NamedTuple):
    """Rows that go through the core together: from ``first``, so many of them in these blocks."""

    first: int
    rows: int
    items: tuple[array[int], array[int]]


class AroundTable(Table):
    """A table whose rows are contiguous and go through the rule's core in stacks of one shape."""

    def __init__(self, signature: Signature, params: list[Tensor], grads: list[Tensor]) -> None:
        alike: dict[torch.Size, list[tuple[Tensor, Tensor]]] = {}
        for param, grad in zip(params, grads, strict=True):
            alike.setdefault(param.shape, []).append((param, grad))
        ordered = [*chain(*alike.values())]
        super().__init__(signature, [p for p, _ in ordered], [g for _, g in ordered])
        assert signature.middle is not None
        middle = signature.middle
        self.core, self.between, self.after = middle.core, middle.dtype, middle.after
        self.stacks: list[Stack] = []
        end = 0
        for shape, rows in alike.items():
            start, end = end, end + len(rows)
            most = self.core.together(shape, self.between)
            for first in range(start, end, most):
                count = min(most, end - first)
                items = blocks([shape.numel()] * count, [1] * count)
                self.stacks.append(Stack(first, count, items))

    def bind(self, states: list[State]) -> None:
        """Fill the columns with the parameters' state."""
        super().bind(states)
        self.own = [self.columns[name] for name in self.kernel.columns if name in states[0]]
        self.lost = [
            array("q", [state[name].data_ptr() for state in states])
            for name in self.after.columns
            if name == "compensation"
        ]

    def run(self, values: Values, bound: float | None, maximize: bool) -> None:
        """Step every row."""
        limit, sign = math.inf if bound is None else bound, -1.0 if maximize else 1.0
        space, memory = self.memory(), self.memory(self.core.work)
        for stack in self.stacks:
            first = self.params[stack.first]
            size = stack.rows * first.numel()
            inside = space[:size].view(stack.rows, *first.shape)
            places = array("q", map(POINTER, inside))
            own = [self.at(column, stack.first) for column in (self.grads, *self.own)]
            scales = None if self.scales is None else self.at(self.scales, stack.first)
            call = Call(scale=self.scale, scales=scales, bound=limit, sign=sign, advance=False)
            self.one(self.kernel, stack, [self.at(places), *own], values, call)
            directions = self.core.whole(inside, values, memory).contiguous()
            places = array("q", map(POINTER, directions))
            own = [self.at(column, stack.first) for column in self.lost]
            target = self.at(self.columns["param"], stack.first)
            call = Call(scale=1.0, bound=math.inf, sign=1.0, advance=True)
            self.one(self.after, stack, [target, self.at(places), *own], values, call)
        torch.autograd.graph.increment_version(self.params)

    def memory(self, entries: Callable[[Sequence[int]], int] = math.prod) -> Tensor:
        """Memory for any stack, whose parameters take so many entries each."""
        most = max(stack.rows * entries(self.params[stack.first].shape) for stack in self.stacks)
        return torch.empty(most, dtype=self.between)

    @staticmethod
    def at(column: array[Any], row: int = 0) -> int:
        """Where in a column a row begins."""
        return column.buffer_info()[0] + WORD * row

    def one(
        self, kernel: Kernel, stack: Stack, columns: list[int], values: Values, call: Call
    ) -> None:
        """Run a kernel over a stack, whose columns begin at these addresses."""
        table, hyper = array("q", columns), array("d", kernel.numbers(values))
        item_rows, item_starts = stack.items
        call.rows, call.items = stack.rows, len(item_rows)
        call.sizes = self.at(self.sizes, stack.first)
        call.item_rows, call.item_starts = address(item_rows), address(item_starts)
        call.columns, call.hyper = address(table), address(hyper)
        call.steps = self.at(self.columns["step"], stack.first)
        call.slots, call.sums = address(self.slots), address(self.sums)
        call.threads = threads_for(stack.rows * self.sizes[stack.first])
        kernel.library().run(ctypes.addressof(call))
