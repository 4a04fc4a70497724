"""Steps of parameters of which something has to see more than a piece that fits the cache.

What comes before and after it is done in pieces: gradients are prepared for it in memory of their
own, and what it makes of them is the direction.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
from torch import Tensor

from optimizers.batch import Batch, seen, step_part, stepped, store
from optimizers.core import DecayMode
from optimizers.eager.repeated import Compute, Computed, Repeated
from optimizers.parts import Core, Pair, Slices, follow
from optimizers.pieces import Piece, chunk, chunks, fit, slices_of
from optimizers.precision import compute_dtype

VALUES = "values"  # what is prepared, while it is beside the rule's own state
SLICE = 2**19  # entries of a slice; two are in memory, and products of fewer rows are slower

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


def before_slices(batch: Batch, part: Piece) -> Computed:
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
        for part in chunks(piece._replace(state={**piece.state, VALUES: values})):
            wide = self.wide(part, part.state[VALUES])
            whole = part._replace(state={**part.state, VALUES: wide})
            if self.first.step(whole) is None:
                store(whole.state, self.before(self.batch, whole).state)
            if wide is not part.state[VALUES]:
                part.state[VALUES].copy_(wide)

    def apply(self, piece: Piece, direction: Tensor, noise: torch.Generator | None) -> None:
        """Step in a direction."""
        for part in chunks(piece._replace(grad=direction, state={}, scale=1.0)):
            wide = self.wide(part, part.grad)
            if wide is not part.grad:
                wide.copy_(part.grad)
            whole = part._replace(grad=wide)
            if noise is not None or self.last.step(whole) is None:
                step_part(self.after, self.after.rule, whole, noise)

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


def around_core(batch: Batch, core: Core) -> Step:
    """How parameters are stepped whose `Core` has to see all of them."""
    around = Around(batch, before_core)

    def step(piece: Piece, noise: torch.Generator | None) -> None:
        values = torch.empty_like(piece.param, dtype=core.storage(piece.param, batch.hyper))
        around.prepare(piece, values)
        work = values.new_empty(core.work(values.shape))
        direction = core.whole(values.unsqueeze(0), batch.hyper, work).squeeze(0)
        around.apply(piece, direction, noise)

    return step


class Sliced:
    """Steps slice by slice, in memory that is made once for all parameters of a batch."""

    def __init__(self, batch: Batch, slices: Slices) -> None:
        self.batch, self.slices = batch, slices
        self.around = Around(batch, before_slices)
        self.most = max((self.entries(piece) for piece in batch.pieces()), default=0)
        self.known: dict[object, Pair] = {}

    def step(self, piece: Piece, noise: torch.Generator | None) -> None:
        """Step one parameter."""
        hyper, t, memory = self.batch.hyper, piece.t, self.memory(piece)
        store(piece.state, self.slices.begin(piece.state, hyper, t, memory))
        for part in self.parts(piece):
            grad = memory[0][: part.param.numel()].view(part.param.shape)
            self.around.prepare(part._replace(state={}), grad)
            direction, state = self.slices.each(grad, part.state, hyper, t, memory)
            store(part.state, state)
            self.around.apply(part, direction, noise)
        store(piece.state, self.slices.end(piece.state, hyper, t, memory))

    def along(self, piece: Piece) -> int | None:
        """The dimension in which a parameter is cut, if it is."""
        small = piece.param.numel() <= SLICE or isinstance(piece.scale, Tensor)
        return None if small else self.slices.along(piece.state)

    def parts(self, piece: Piece) -> Iterator[Piece]:
        """The slices of a parameter."""
        along = self.along(piece)
        if along is None:
            yield piece
            return
        own = {key: value for key, value in piece.state.items() if value.shape == piece.param.shape}
        yield from slices_of(piece, own, along, fit(piece.param.shape, along, SLICE))

    def entries(self, piece: Piece) -> int:
        """How many a slice of a parameter has."""
        shape, along = piece.param.shape, self.along(piece)
        entries = shape.numel()
        return entries if along is None else entries // shape[along] * fit(shape, along, SLICE)

    def memory(self, piece: Piece) -> Pair:
        """Two vectors with as many entries as the largest slice has."""
        kind = piece.param.device, compute_dtype(piece.param.dtype)
        if kind not in self.known:
            pair = torch.empty(2, self.most, device=kind[0], dtype=kind[1])
            self.known[kind] = pair[0], pair[1]
        return self.known[kind]
