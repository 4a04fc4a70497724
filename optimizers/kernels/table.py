"""Which parameters of a group a kernel takes, and the table of pointers that it takes them by.

A table outlives its step: pointers, strides and dtypes are compared with what they were, which
costs about a microsecond per parameter, and only what changed is written anew. Nothing here holds
on to a gradient, so ``zero_grad(set_to_none=True)`` still frees them.
"""

from __future__ import annotations

import ctypes
import math
from array import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from operator import attrgetter
from struct import Struct
from typing import Any

import torch
from torch import Tensor

from optimizers.core import State, Values
from optimizers.kernels.kernel import NORM_BLOCK, Call, Kernel, Norms, Whole, blocks, threads_for
from optimizers.kernels.source import STORAGE
from optimizers.kernels.trace import is_stack
from optimizers.kernels.watch import RowWatch, address
from optimizers.parts import Core
from optimizers.pieces import flat
from optimizers.precision import COMPENSATION_DTYPE, as_real, compute_dtype

POINTER: Callable[[Tensor], int] = Tensor.data_ptr
CONTIGUOUS: Callable[[Tensor], bool] = Tensor.is_contiguous
GRAD = attrgetter("grad")
PLAIN = {Tensor, torch.nn.Parameter}
REAL = {torch.complex64: torch.float32, torch.complex128: torch.float64}


def takes(param: Tensor, grad: Tensor) -> bool:
    """Whether a kernel can take a parameter: an ordinary one, on the CPU, with such a gradient."""
    return (
        type(param) in PLAIN
        and type(grad) is Tensor
        and param.device.type == "cpu"
        and param.layout == grad.layout == torch.strided
        and param.dtype == grad.dtype
        and REAL.get(param.dtype, param.dtype) in STORAGE
        and bool(param.numel())
        and not (grad.is_neg() or grad.is_conj() or param.is_neg() or param.is_conj())
        and bool(param.data_ptr())
        and bool(grad.data_ptr())
    )


def holds(param: Tensor, state: Mapping[str, Any]) -> bool:
    """Whether a kernel can take the state of a parameter."""
    wide = compute_dtype(param.dtype)
    for key, value in state.items():
        if type(value) is not Tensor or value.device.type != "cpu" or value.is_neg():
            return False
        if key == "step":
            if value.dtype != torch.float32 or value.dim():
                return False
        elif key == "compensation":
            if value.dtype != COMPENSATION_DTYPE or value.shape != as_real(param).shape:
                return False
        elif value.shape == param.shape:
            if value.dtype != wide and not (value.dtype == torch.float64 and not value.dim()):
                return False
        elif factor(value, param):
            if value.dtype != wide or not value.is_contiguous():
                return False
        elif value.dim() or value.dtype not in (torch.float32, torch.float64):
            return False
    return True


def factor(value: Tensor, param: Tensor) -> bool:
    """Whether a tensor has one value per row, or per column, of a matrix or of small ones."""
    if param.dim() != 2 and not is_stack(param.shape):
        return False
    *stack, rows, columns = param.shape
    return value.shape in ((*stack, rows, 1), (*stack, 1, columns))


def order(tensor: Tensor) -> list[int]:
    """Dimensions from the outermost in memory to the innermost."""
    return sorted(range(tensor.dim()), key=lambda d: -tensor.stride()[d])


def describe(columns: Sequence[Tensor]) -> array[int] | None:
    """The layout of a row as kernels read it, or None when all columns are dense and alike."""
    if all(map(CONTIGUOUS, columns)):
        return None
    real = [as_real(column) for column in columns]
    if flat(real) is not None:
        return None
    dims = order(real[0])
    strides = [column.stride(d) for column in real for d in dims]
    return array("q", [len(dims), *(real[0].shape[d] for d in dims), *strides])


def table_of(arrays: Sequence[array[Any] | None]) -> array[int] | None:
    """A table of where arrays lie; None when there is none at all."""
    return array("q", [address(a) or 0 for a in arrays]) if any(arrays) else None


def entry(function: Any) -> int | None:
    """Where a library's function begins."""
    return ctypes.cast(function, ctypes.c_void_p).value


@dataclass(frozen=True)
class Middle:
    """What comes behind a first kernel: a rule's core on values of a dtype, and another kernel."""

    core: Core
    dtype: torch.dtype
    after: Kernel


@dataclass(frozen=True)
class Signature:
    """What the rows of one table have in common."""

    dtype: torch.dtype  # of the parameters
    kernel: Kernel
    share: Kernel | None = None
    middle: Middle | None = None

    @property
    def kernels(self) -> list[Kernel]:
        """All that there are."""
        after = None if self.middle is None else self.middle.after
        return [k for k in (self.kernel, self.share, after) if k is not None]


@dataclass
class Prepared:
    """How a kernel is called: its entry, what it takes, and how the hyperparameters get there."""

    run: Callable[[int], None]
    call: Call
    place: int  # of the call in memory
    pack: Callable[..., None]
    hyper: array[float]


class Table:
    """Parameters that one kernel takes, a row each; `bind` gives it their state."""

    def __init__(self, signature: Signature, params: list[Tensor], grads: list[Tensor]) -> None:
        self.kernel, self.share, self.dtype = signature.kernel, signature.share, signature.dtype
        self.kernels = signature.kernels
        self.library = self.kernel.library()
        self.params = params
        reals = 2 if self.dtype.is_complex else 1  # of an entry
        self.sizes = array("q", [param.numel() * reals for param in params])
        self.entries = sum(self.sizes)
        self.heights = self.widths = None
        together = [1] * len(params)
        if self.kernel.factored:
            self.heights = array("q", [param.shape[-2] for param in params])
            self.widths = array("q", [param.shape[-1] for param in params])
        if self.kernel.stacked:
            together = [prod(param.shape[-2:]) for param in params]
        self.item_rows, self.item_starts = blocks(self.sizes, together)
        self.grads = array("q", map(POINTER, grads))
        self.grad_layouts = [describe([grad]) for grad in grads]
        self.grad_layout_table = table_of(self.grad_layouts)
        self.norm_items = blocks(self.sizes, [1] * len(params), NORM_BLOCK)
        self.squares = array("d", bytes(8 * len(params)))
        self.parts = array("d", bytes(8 * len(self.norm_items[0])))
        self.norms = self.prepare_norms()
        self.norms_place = ctypes.addressof(self.norms)
        # what multiplies gradients: all of them, each row's, and each unit's of a row
        self.scale = 1.0
        self.scales: array[float] | None = None
        self.units: list[Tensor] | None = None
        self.states: list[State] | None = None
        self.watch: RowWatch | None = None

    def same(self) -> bool:
        """Whether all that rows point to is of the kind it was; takes over where gradients lie.

        That states belong to parameters as they did is not looked at here.
        """
        return self.watch is not None and self.watch.same()

    # Columns --------------------------------------------------------------------------------------

    def bind(self, states: list[State]) -> None:
        """Fill the columns with the parameters' state, which is there by now."""
        self.states = states
        own = [key for key in self.kernel.columns if key not in ("param", "grad")]
        real = not self.dtype.is_complex
        self.watch = RowWatch(self.params, states, self.library, self.grads, real=real)
        self.tensors = {key: [state[key] for state in states] for key in (*own, "step")}
        columns = {"param": self.params, **self.tensors}
        self.columns = {key: array("q", map(POINTER, column)) for key, column in columns.items()}
        self.columns["grad"] = self.grads
        columns["grad"] = [*map(GRAD, self.params)]
        self.layouts = [
            describe([columns[key][row] for key in self.kernel.entry_columns])
            for row in range(len(self.params))
        ]
        self.layout_table = table_of(self.layouts)
        self.slots = array("d", bytes(8 * max(k.slots for k in self.kernels) * len(self.params)))
        most = max(k.reductions for k in self.kernels)
        self.sums = array("d", bytes(8 * max(most, 1) * len(self.item_rows)))
        self.calls: dict[Kernel, Prepared] = {}
        self.kept: list[array[int]] = []  # what the calls point to

    # What kernels do ------------------------------------------------------------------------------

    def prepare_norms(self) -> Norms:
        """The call for the gradients' norms with all that stays the same from step to step."""
        item_rows, item_starts = self.norm_items
        return Norms(
            rows=len(self.params),
            items=len(item_rows),
            sizes=address(self.sizes),
            item_rows=address(item_rows),
            item_starts=address(item_starts),
            grads=address(self.grads),
            layouts=address(self.grad_layout_table),
            parts=address(self.parts),
            squares=address(self.squares),
        )

    def square_sum(self) -> float:
        """The sum of squares of all gradients; `squares` has that of each."""
        self.norms.threads = threads_for(self.entries)
        return float(self.library.squares(self.norms_place))

    def prepare(self, kernel: Kernel) -> Prepared:
        """A kernel's call with all that stays the same from step to step."""
        table = array("q", [address(self.columns[key]) or 0 for key in kernel.columns])
        hyper = array("d", [0.0] * len(kernel.hypers))
        self.kept.append(table)
        call = Call(
            rows=len(self.params),
            items=len(self.item_rows),
            sizes=address(self.sizes),
            widths=address(self.widths),
            heights=address(self.heights),
            item_rows=address(self.item_rows),
            item_starts=address(self.item_starts),
            columns=address(table),
            steps=address(self.columns["step"]),
            layouts=address(self.layout_table),
            slots=address(self.slots),
            hyper=address(hyper),
            sums=address(self.sums),
        )
        own = Struct(f"{len(hyper)}d")
        return Prepared(kernel.library().run, call, ctypes.addressof(call), own.pack_into, hyper)

    def ready(
        self, kernel: Kernel, values: Values, bound: float | None, *, maximize: bool, advance: bool
    ) -> Prepared:
        """A kernel's call that knows these numbers."""
        own = self.calls.get(kernel)
        if own is None:
            own = self.calls[kernel] = self.prepare(kernel)
        own.pack(own.hyper, 0, *kernel.numbers(values))
        own.call.sign = -1.0 if maximize else 1.0
        own.call.bound, own.call.advance = math.inf if bound is None else bound, advance
        return own

    def call(
        self, kernel: Kernel, values: Values, bound: float | None, *, maximize: bool, advance: bool
    ) -> None:
        """Run a kernel over all rows."""
        own = self.ready(kernel, values, bound, maximize=maximize, advance=advance)
        call = own.call
        call.scale, call.scales = self.scale, address(self.scales)
        call.threads = threads_for(self.entries)
        if self.units is None:
            own.run(own.place)
            return
        units = [unit.to(self.wide).contiguous() for unit in self.units]
        found = array("q", [*map(POINTER, units)])
        sizes = array("q", [n // u.numel() for n, u in zip(self.sizes, units, strict=True)])
        call.unit_scales, call.unit_sizes = address(found), address(sizes)
        own.run(own.place)
        call.unit_scales = call.unit_sizes = None

    @property
    def wide(self) -> torch.dtype:
        """The precision of the arithmetic."""
        return compute_dtype(REAL.get(self.dtype, self.dtype))

    def run(self, values: Values, bound: float | None, maximize: bool) -> None:
        """Step every row."""
        self.call(self.kernel, values, bound, maximize=maximize, advance=True)
        torch.autograd.graph.increment_version(self.params)

    def whole(self) -> Whole:
        """What steps all rows as `run` did last, with another norm of the gradients."""
        squares, own = self.library.squares, self.calls[self.kernel]
        return Whole(entry(squares), self.norms_place, entry(own.run), own.place)

    def newest(self) -> float:
        """The most updates that a row's state has absorbed."""
        return max(map(float, self.tensors["step"]))

    def totals(self, values: Values, bound: float | None, maximize: bool) -> dict[str, float]:
        """The sums over all rows that a `ModelHook` asks for."""
        if self.share is None:
            return {}
        self.call(self.share, values, bound, maximize=maximize, advance=False)
        rows, slots = len(self.params), self.share.slots
        return {
            name: math.fsum(self.slots[slot : rows * slots : slots])
            for name, slot in self.share.sums.items()
        }
