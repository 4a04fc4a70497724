"""Parameters whose rule has a `Core`: kernels lead to it and away from it, stack by stack.

The values that go through the core are the only memory it takes beside the core's own, and there is
one stack of them at a time.
"""

from __future__ import annotations

import ctypes
import math
from array import array
from itertools import accumulate

import torch
from torch import Tensor

from optimizers.core import State, Values
from optimizers.kernels.kernel import BLOCK, Call, Kernel, threads_for
from optimizers.kernels.table import POINTER, Signature, Table
from optimizers.kernels.watch import address

WORD = 8  # bytes of an address or number in a table


class AroundTable(Table):
    """A table whose rows are contiguous and go through the rule's core in stacks of one shape."""

    def __init__(self, signature: Signature, params: list[Tensor], grads: list[Tensor]) -> None:
        super().__init__(signature, params, grads)
        assert signature.core is not None
        assert signature.after is not None
        self.core, self.after = signature.core, signature.after
        self.blocks = [-(-size // BLOCK) for size in self.sizes]
        self.first = [0, *accumulate(self.blocks)]
        self.zeros = array("q", bytes(WORD * max(self.blocks)))
        alike: dict[torch.Size, list[int]] = {}
        for row, param in enumerate(params):
            alike.setdefault(param.shape, []).append(row)
        self.stacks = [
            rows[start : start + most]
            for shape, rows in alike.items()
            for most in [self.core.together(shape)]
            for start in range(0, len(rows), most)
        ]

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
        wide = max(len(rows) * self.sizes[rows[0]] for rows in self.stacks)
        space = torch.empty(wide * self.wide.itemsize, dtype=torch.uint8)
        for rows in self.stacks:
            first = self.params[rows[0]]
            dtype, size = self.core.storage(first, values), len(rows) * first.numel()
            inside = space[: size * dtype.itemsize].view(dtype).view(len(rows), *first.shape)
            places = array("q", map(POINTER, inside))
            for number, row in enumerate(rows):
                scale = self.scale if self.scales is None else self.scales[row]
                at = [self.at(column, row) for column in (self.grads, *self.own)]
                at.insert(0, self.at(places, number))
                self.one(self.kernel, row, at, values, (scale, limit, sign), advance=False)
            directions = self.core.whole(inside, values).contiguous()
            places = array("q", map(POINTER, directions))
            for number, row in enumerate(rows):
                at = [self.at(self.columns["param"], row), self.at(places, number)]
                at += [self.at(column, row) for column in self.lost]
                self.one(self.after, row, at, values, (1.0, math.inf, 1.0), advance=True)
            del directions  # may be memory of their own, which the next stack can use
        torch.autograd.graph.increment_version(self.params)

    @staticmethod
    def at(column: array[int], row: int = 0) -> int:
        """Where in a column a row begins."""
        return column.buffer_info()[0] + WORD * row

    def one(
        self,
        kernel: Kernel,
        row: int,
        columns: list[int],
        values: Values,
        factors: tuple[float, float, float],
        *,
        advance: bool,
    ) -> None:
        """Run a kernel over one row, whose columns begin at these addresses."""
        table, hyper = array("q", columns), array("d", kernel.numbers(values))
        scale, bound, sign = factors
        call = Call(
            rows=1,
            items=self.blocks[row],
            sizes=self.at(self.sizes, row),
            item_rows=address(self.zeros),
            item_starts=self.at(self.item_starts, self.first[row]),
            columns=address(table),
            steps=self.at(self.columns["step"], row),
            hyper=address(hyper),
            scale=scale,
            bound=bound,
            sign=sign,
            slots=address(self.slots),
            sums=address(self.sums),
            threads=threads_for(self.sizes[row]),
            advance=advance,
        )
        kernel.library().run(ctypes.addressof(call))
