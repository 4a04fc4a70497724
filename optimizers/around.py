"""Steps of parameters of which something has to see more than a piece that fits the cache.

What comes before and after it is done in pieces: gradients are prepared for it in memory of their
own, and what it makes of them is the direction.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from optimizers.batch import Batch, seen, step_part, stepped, store, store_part
from optimizers.core import DecayMode, State
from optimizers.eager.program import Memory
from optimizers.eager.repeated import Compute, Computed, Repeated
from optimizers.parts import Blocks, Core, Known, Pair, Slices, follow
from optimizers.pieces import Piece, chunk, chunks, fit, slices_of
from optimizers.precision import compute_dtype, widen

VALUES = "values"  # what is prepared, while it is beside the rule's own state
PART = 2**19  # entries of a part, of which two are in memory; products of fewer rows are slower
WHOLE = 2**20  # entries of a matrix that is not cut into blocks, which take several passes each

Step = Callable[[Piece, torch.Generator | None], None]


def computed(batch: Batch, part: Piece) -> Computed:
    """The step of a part by the rule itself."""
    return Computed(*stepped(batch, batch.rule, part), {})


def before_core(batch: Batch, part: Piece) -> Computed:
    """The new state of a part, and the values for the rule's core."""
    core = batch.rule.core
    assert core is not None
    own = {key: value for key, value in part.state.items() if key != VALUES}
    grad, param = seen(batch, part)
    values, state = core.before(grad, param, own, batch.hyper, part.t)
    return Computed(None, {**state, VALUES: values}, {})


def before_parts(batch: Batch, part: Piece) -> Computed:
    """The gradient as the rule sees it."""
    return Computed(None, {VALUES: seen(batch, part)[0]}, {})


class Around:
    """The beginning and the end of steps; never more than a piece is in memory for them."""

    def __init__(self, batch: Batch, before: Compute) -> None:
        self.batch, self.before = batch, before
        rule = replace(batch.rule, update=follow)
        mode: DecayMode = "none" if batch.mode == "l2" else batch.mode  # is in the values already
        self.after = replace(batch, rule=rule, mode=mode, bound=None, maximize=False)
        self.scratch: Tensor | None = None
        self.first = Repeated(batch, before)
        self.last = Repeated(self.after, computed)

    def prepare(self, piece: Piece, values: Tensor) -> None:
        """Fill in what comes before, and update the state of it."""
        whole = piece._replace(state={**piece.state, VALUES: values})
        if self.first.step(whole) is not None:
            return
        for part in chunks(whole):
            wide = self.wide(part, part.state[VALUES])
            own = part._replace(state={**part.state, VALUES: wide})
            if self.first.step(own) is None:
                store(own.state, self.before(self.batch, own).state)
            if wide is not part.state[VALUES]:
                part.state[VALUES].copy_(wide)

    def apply(self, piece: Piece, direction: Tensor, noise: torch.Generator | None) -> None:
        """Step in a direction."""
        whole = piece._replace(grad=direction, state={}, scale=1.0)
        if noise is None and self.last.step(whole) is not None:
            return
        for part in chunks(whole):
            wide = self.wide(part, part.grad)
            if wide is not part.grad:
                wide.copy_(part.grad)
            own = part._replace(grad=wide)
            if noise is not None or self.last.step(own) is None:
                step_part(self.after, self.after.rule, own, noise)

    def wide(self, part: Piece, values: Tensor) -> Tensor:
        """Memory for values in the precision of the arithmetic, or the values themselves."""
        dtype, size = compute_dtype(part.param.dtype), values.numel()
        if values.dtype == dtype:
            return values
        if values.dim() != 1 or size > chunk():
            return torch.empty_like(values, dtype=dtype)
        if self.scratch is None:
            self.scratch = values.new_empty(chunk(), dtype=dtype)
        return self.scratch[:size]


class Space:
    """Memory that is made once for all parameters of a batch, as large as any of them needs."""

    def __init__(self, batch: Batch, need: Callable[[Piece], int]) -> None:
        self.most = max(map(need, batch.pieces()), default=0)
        self.memory = Memory()

    def take(self, use: str, count: int, param: Tensor, dtype: torch.dtype) -> list[Tensor]:
        """Vectors on the device of a parameter."""
        return self.memory.take(use, count, param.new_empty(0, dtype=dtype), self.most)


def around_core(batch: Batch, core: Core) -> Step:
    """How parameters are stepped whose `Core` has to see all of them."""
    around = Around(batch, before_core)
    space = Space(batch, lambda piece: piece.param.numel())
    work = Space(batch, lambda piece: core.work(piece.param.shape))

    def step(piece: Piece, noise: torch.Generator | None) -> None:
        param, dtype = piece.param, core.storage(piece.param, batch.hyper)
        values = like(param, *space.take("values", 1, param, dtype))
        around.prepare(piece, values)
        memory = work.take("work", 1, param, dtype)[0][: core.work(param.shape)]
        direction = core.whole(values.unsqueeze(0), batch.hyper, memory).squeeze(0)
        around.apply(piece, direction, noise)

    return step


def like(tensor: Tensor, memory: Tensor) -> Tensor:
    """A part of a vector in the shape of a tensor, and in its layout if that has no holes."""
    vector = memory[: tensor.numel()]
    return vector.as_strided(tensor.shape, torch.empty_like(tensor, device="meta").stride())


class InParts:
    """Steps part by part, in two vectors of memory as large as a part.

    ``cut`` says along which dimension a parameter is cut, and how much of it makes a part; None: it
    is stepped as a whole.
    """

    def __init__(self, batch: Batch, cut: Callable[[Piece], tuple[int, int] | None]) -> None:
        self.batch, self.cut = batch, cut
        self.around = Around(batch, before_parts)
        self.space = Space(batch, self.entries)

    def entries(self, piece: Piece) -> int:
        """How many the largest part of a parameter has."""
        shape, cut = piece.param.shape, self.cut(piece)
        return shape.numel() if cut is None else shape.numel() // shape[cut[0]] * cut[1]

    def parts(self, piece: Piece) -> list[Piece]:
        """The parts of a parameter."""
        cut = self.cut(piece)
        return [piece] if cut is None else [*slices_of(piece, *cut)]

    def memory(self, piece: Piece) -> Pair:
        """Two vectors that have room for every part."""
        dtype = compute_dtype(piece.param.dtype)
        first, second = self.space.take("parts", 2, piece.param, dtype)
        return first, second

    def seen(self, part: Piece, memory: Pair) -> Tensor:
        """The gradient as the rule sees it, in the first vector."""
        batch, grad = self.batch, memory[0][: part.param.numel()].view(part.param.shape)
        changed = batch.bound is not None or batch.maximize or batch.mode == "l2"
        if changed or part.grad.dtype != grad.dtype:
            self.around.prepare(part._replace(state={}), grad)
            return grad
        return torch.mul(part.grad, part.scale, out=grad)


def in_slices(batch: Batch, slices: Slices) -> Step:
    """How parameters are stepped whose `Slices` share a state."""

    def cut(piece: Piece) -> tuple[int, int] | None:
        small = piece.param.numel() <= PART or isinstance(piece.scale, Tensor)
        along = None if small else slices.along(piece.state)
        return None if along is None else (along, fit(piece.param.shape, along, PART))

    own, hyper = InParts(batch, cut), batch.hyper

    def step(piece: Piece, noise: torch.Generator | None) -> None:
        memory = own.memory(piece)
        store(piece.state, slices.begin(piece.state, hyper, piece.t, memory))
        for part in own.parts(piece):
            grad = own.seen(part, memory)
            direction, state = slices.each(grad, part.state, hyper, part.t, memory)
            store(part.state, state)
            own.around.apply(part, direction, noise)
        store(piece.state, slices.end(piece.state, hyper, piece.t, memory))

    return step


def in_blocks(batch: Batch, blocks: Blocks) -> Step:
    """How parameters are stepped in `Blocks` that know the sums over all of them."""

    def cut(piece: Piece) -> tuple[int, int] | None:
        shape = piece.param.shape
        least, size = (WHOLE, PART) if len(shape) == 2 else (chunk(), chunk())
        small = len(shape) < 2 or shape.numel() <= least or isinstance(piece.scale, Tensor)
        return None if small else (0, fit(shape, 0, size))

    own, hyper = InParts(batch, cut), batch.hyper

    def step(piece: Piece, noise: torch.Generator | None) -> None:
        parts, memory = own.parts(piece), own.memory(piece)
        spaces = [memory[1][: part.param.numel()].view(part.param.shape) for part in parts]
        known: list[Known] = [{"space": space} for space in spaces]
        whole = own.seen(piece, memory) if len(parts) == 1 else None  # stays in the first vector
        if whole is not None:
            known[0]["whole"] = True

        def arguments(part: Piece, known: Known) -> tuple[Any, ...]:
            grad = own.seen(part, memory) if whole is None else whole
            return grad, widen(part.param, part.compensation), part.state, hyper, part.t, known

        for sums in blocks.passes:
            found = [sums(*arguments(*row)) for row in zip(parts, known, strict=True)]
            known = blocks.knowing(known, found, piece.param.dim())
        shared: State = {}
        for part, all_rows in zip(parts, known, strict=True):
            direction, state = blocks.finish(*arguments(part, all_rows))
            shared |= store_part(piece, part, state)
            own.around.apply(part, direction, noise)
        store(piece.state, shared)

    return step
