"""Steps of parameters of which something has to see more than a piece that fits the cache.

What comes before and after it is done in pieces: gradients are prepared for it in memory of their
own, and what it makes of them is the direction.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from optimizers.batch import Batch, seen, step_part, stepped, store, store_part
from optimizers.core import DecayMode, State
from optimizers.eager.program import Memory
from optimizers.eager.repeated import Compute, Computed, Repeated
from optimizers.parts import Blocks, Core, Known, Pass, Room, Slices, Target, follow, front
from optimizers.pieces import Piece, chunk, chunks, fit, slices_of
from optimizers.precision import compute_dtype, widen

VALUES = "values"  # what is prepared, while it is beside the rule's own state
PART = 2**19  # entries of a part, of which two are in memory; products of fewer rows are slower
LITTLE = 1e-3  # of a gradient is left: clipped before it is squared, or the square is no number
ROWS = 2**20  # entries of rows of a matrix; each block costs calls for what it has in common

Step = Callable[[Sequence[Piece], torch.Generator | None], None]  # of parameters of one shape
Single = Callable[[Piece, torch.Generator | None], None]


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
        self.sizes: dict[float, list[float]] = {}

    def lend(self, vector: Tensor) -> None:
        """Memory that nobody needs while this prepares and applies."""
        for own in (self.first, self.last):
            own.memory.lend(vector)

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

    def target(self, part: Piece) -> Target | None:
        """A part as what a direction may be added to, if nothing else is to be done with it."""
        param, t = part.param, part.t
        plain = part.compensation is None and param.dtype == compute_dtype(param.dtype)
        if not plain or not param.is_contiguous():
            return None
        if t not in self.sizes:  # what becomes of 1 and 0 in the directions 0 and 1
            both = torch.eye(2, dtype=torch.float64)
            entries = Piece(both[0], both[1], {}, None, t, 1.0)
            self.sizes[t] = stepped(self.after, self.after.rule, entries)[0].tolist()
        return Target(param, *self.sizes[t])

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
    """Memory that is made once for all parameters of a batch, as large as any of them needs.

    A stack of small ones may need more.
    """

    def __init__(self, batch: Batch, need: Callable[[Piece], int]) -> None:
        self.most = max(map(need, batch.pieces()), default=0)
        self.memory = Memory()

    def take(
        self, use: str, count: int, param: Tensor, dtype: torch.dtype, least: int = 0
    ) -> list[Tensor]:
        """Vectors on the device of a parameter."""
        return self.memory.take(use, count, param.new_empty(0, dtype=dtype), max(least, self.most))


def around_core(batch: Batch, core: Core) -> Step:
    """How parameters are stepped whose `Core` has to see all of them."""
    around = Around(batch, before_core)
    found = Counter(param.shape for param in batch.params)

    def together(param: Tensor) -> int:
        """How many parameters of a shape make a stack at most."""
        most = core.together(param.shape, core.storage(param, batch.hyper))
        return min(found[param.shape], most)

    space = Space(batch, lambda piece: together(piece.param) * piece.param.numel())
    work = Space(batch, lambda piece: together(piece.param) * core.work(piece.param.shape))

    def step_stack(pieces: Sequence[Piece], noise: torch.Generator | None) -> None:
        param = pieces[0].param
        dtype = core.storage(param, batch.hyper)
        (vector,) = space.take("values", 1, param, dtype)
        (memory,) = work.take("work", 1, param, dtype)
        around.lend(memory)
        values = like(param, vector, len(pieces))
        for piece, own in zip(pieces, values, strict=True):
            around.prepare(piece, own)
        directions = core.whole(values, batch.hyper, memory)
        for piece, direction in zip(pieces, directions, strict=True):
            around.apply(piece, direction, noise)

    def step(pieces: Sequence[Piece], noise: torch.Generator | None) -> None:
        count = together(pieces[0].param)
        for start in range(0, len(pieces), count):
            step_stack(pieces[start : start + count], noise)

    return step


def like(tensor: Tensor, memory: Tensor, count: int) -> Tensor:
    """A stack at the beginning of a vector: of a tensor's shape, in its layout without holes."""
    vector = memory[: count * tensor.numel()]
    strides = torch.empty_like(tensor, device="meta").stride()
    return vector.as_strided((count, *tensor.shape), (tensor.numel(), *strides))


class InParts:
    """Steps part by part.

    ``cut`` says along which dimension a parameter is cut, and how much of it makes a part; None: it
    is stepped as a whole.
    """

    def __init__(self, batch: Batch, cut: Callable[[Piece], tuple[int, int] | None]) -> None:
        self.batch, self.cut = batch, cut
        self.around = Around(batch, before_parts)

    def entries(self, piece: Piece) -> int:
        """How many the largest part of a parameter has."""
        shape, cut = piece.param.shape, self.cut(piece)
        return shape.numel() if cut is None else shape.numel() // shape[cut[0]] * cut[1]

    def parts(self, piece: Piece) -> list[Piece]:
        """The parts of a parameter."""
        cut = self.cut(piece)
        return [piece] if cut is None else [*slices_of(piece, *cut)]

    def changes(self, part: Piece) -> bool:
        """Whether the rule sees more of the gradient than a multiple of it."""
        batch, grad = self.batch, part.grad
        changed = batch.bound is not None or batch.maximize or batch.mode == "l2"
        return changed or grad.dtype != compute_dtype(part.param.dtype)

    def seen(self, part: Piece, grad: Tensor) -> Tensor:
        """The gradient as the rule sees it, which is filled in."""
        if self.changes(part):
            self.around.prepare(part._replace(state={}), grad)
            return grad
        return torch.mul(part.grad, part.scale, out=grad)


def in_slices(batch: Batch, slices: Slices) -> Single:
    """How parameters are stepped whose `Slices` share a state."""

    def cut(piece: Piece) -> tuple[int, int] | None:
        small = piece.param.numel() <= PART or isinstance(piece.scale, Tensor)
        along = None if small else slices.along(piece.state)
        return None if along is None else (along, fit(piece.param.shape, along, PART))

    own, hyper = InParts(batch, cut), batch.hyper
    space = Space(batch, own.entries)

    def step(piece: Piece, noise: torch.Generator | None) -> None:
        dtype = compute_dtype(piece.param.dtype)
        first, second = space.take("parts", 2, piece.param, dtype, own.entries(piece))
        room = Room(first, second, batch.reflect if piece.param.is_cpu else None)
        store(piece.state, slices.begin(piece.state, hyper, piece.t, room))
        for part in own.parts(piece):
            target = None if noise is not None else own.around.target(part)
            grad, scale, plain = part.grad, part.scale, part.grad.is_contiguous()
            if isinstance(scale, Tensor) or scale < LITTLE or not plain or own.changes(part):
                grad, scale = own.seen(part, front(first, grad.shape)), 1.0
            direction, state = slices.each(
                grad, scale, part.state, hyper, part.t, room._replace(target=target)
            )
            store(part.state, state)
            if direction is not part.param:
                own.around.apply(part, direction, noise)
        store(piece.state, slices.end(piece.state, hyper, piece.t, room))

    return step


def stored(state: State, found: Known) -> Known:
    """The same with what is state in the state's own memory."""
    return {key: state[key].copy_(new) if key in state else new for key, new in found.items()}


def with_numbers(known: Known) -> Known:
    """The same with numbers instead of 0-D tensors where nothing has to wait for them.

    Operations on a number take a tenth of those on a tensor.
    """
    ready = {
        key: value.item()
        for key, value in known.items()
        if isinstance(value, Tensor) and value.is_cpu and not value.dim()
    }
    return {**known, **ready}


def in_blocks(batch: Batch, blocks: Blocks) -> Single:
    """How parameters are stepped in `Blocks` that know the sums over all of them."""

    def cut(piece: Piece) -> tuple[int, int] | None:
        shape = piece.param.shape
        most = ROWS if len(shape) == 2 else chunk()
        small = not shape or shape.numel() <= most or isinstance(piece.scale, Tensor)
        return None if small else (0, fit(shape, 0, most))

    own, hyper = InParts(batch, cut), batch.hyper
    need = Space(batch, lambda piece: own.entries(piece) * (1 if piece.param.dim() == 2 else 4))

    def memory(part: Piece, first: int = 0) -> Tensor:
        """Memory like the gradient, behind that of the first such arrays."""
        param, size = part.param, part.param.numel()
        (whole,) = need.take("parts", 1, param, compute_dtype(param.dtype))
        return whole[first * size : (first + 1) * size].view(param.shape)

    def room(part: Piece, first: int) -> Known:
        """Memory for more arrays, for a matrix one: that of these names, behind the first ones."""
        names = ("space",) if part.param.dim() == 2 else ("space", "spare", "few")
        return {name: memory(part, index) for index, name in enumerate(names, first)}

    def passed(passes: Sequence[Pass], part: Piece, known: Known) -> Known:
        """What passes find that follow each other; what they find of the state is stored."""
        grad, found = own.seen(part, memory(part)), Known()
        given = grad, widen(part.param, part.compensation), part.state, hyper, part.t
        for each in passes:
            found |= stored(part.state, each(*given, {**known, **found}))
        return found

    def of_matrix(piece: Piece, parts: Sequence[Piece]) -> list[Known]:
        """What the blocks of a matrix know in the end."""
        known = [Known(own=True) for _ in parts]
        for each in blocks.passes:
            found = [passed((each,), *row) for row in zip(parts, known, strict=True)]
            known = blocks.knowing(known, found)
            rest = blocks.shortcut and blocks.shortcut(piece.state, hyper, piece.t, known)
            if rest is not None:
                return [{**row, **rest} for row in known]
        return known

    def finish(part: Piece, known: Known) -> tuple[Tensor, State]:
        """The direction of a block, and its new state."""
        grad, wide = part.grad, widen(part.param, part.compensation)
        if "whole" not in known:
            if own.changes(part):
                grad, known = own.seen(part, memory(part)), {**known, "scale": 1.0}
            else:
                known = {**known, "scale": part.scale, **room(part, 0)}
        return blocks.finish(grad, wide, part.state, hyper, part.t, known)

    def step(piece: Piece, noise: torch.Generator | None) -> None:
        parts = own.parts(piece)
        if piece.param.dim() == 2:
            known = of_matrix(piece, parts)
        elif len(parts) == 1:
            whole = Known(own=True, whole=True, **room(piece, 1))
            known = [whole | passed(blocks.passes, piece, whole)]
        else:
            found = [
                passed(blocks.passes, part, Known(own=True, **room(part, 1))) for part in parts
            ]
            known = blocks.knowing_totals([*piece.state], found)
        shared: State = {}
        for part, all_rows in zip(parts, map(with_numbers, known), strict=True):
            direction, state = finish(part, all_rows)
            shared |= store_part(piece, part, state)
            own.around.apply(part, direction, noise)
        store(piece.state, shared)

    return step
