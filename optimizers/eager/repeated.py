"""Large parameters stepped by programs that were recorded once, for whichever numbers come.

What a program looks like depends on the rule and on what it decides by its numbers; the numbers
themselves are put in anew in every step. Programs are kept for as long as the process lives, those
of all optimizers together.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from torch import Tensor

from optimizers.core import State, Values
from optimizers.eager.program import Memory, Program, program
from optimizers.eager.recording import Made, Recording, record
from optimizers.eager.tape import At, Tape, Traced
from optimizers.pieces import LEAST, Piece, cut
from optimizers.precision import compute_dtype

if TYPE_CHECKING:
    from optimizers.batch import Batch

DECISIONS = 16  # programs of one kind that are kept; they differ in what was decided
RECORDED = 2**10  # entries of a recording, which keeps all that is made of them
KEPT = 2**20  # entries of a parameter whose values may wait for the next phase in memory
SLIGHTLY = 1 - 2.0**-10  # what numbers are changed by to see what depends on them


def is_kept(piece: Piece) -> bool:
    """Whether what a later phase needs is kept, and not computed again."""
    return piece.param.numel() <= KEPT


def arrays(part: Piece) -> list[Tensor]:
    """What a part is made of, but for numbers."""
    return [part.param, part.grad, *(value for value in part.state.values() if value.dim())]


@dataclass(frozen=True)
class Computed:
    """What a step makes of a piece: its parameter, None if that stays, its state, and sums."""

    param: Tensor | None
    state: State
    sums: Mapping[str, Tensor]


Compute = Callable[["Batch", Piece], Computed]


def given(batch: Batch, piece: Piece) -> list[Any]:
    """All numbers that a step may depend on, in an order of their own."""
    hypers = [float(value) for value in vars(batch.hyper).values() if isinstance(value, float)]
    bounds = [] if batch.bound is None else [batch.bound]
    numbers = [value for value in piece.state.values() if not value.dim()]
    return [float(piece.t), float(piece.scale), *bounds, *hypers, *numbers]


def with_numbers(batch: Batch, piece: Piece, numbers: Sequence[Any]) -> tuple[Batch, Piece]:
    """A batch and a piece with other numbers, as `given` lists them."""
    t, scale, *rest = numbers
    left = iter(rest)
    bound = None if batch.bound is None else next(left)
    hyper = {k: next(left) if isinstance(v, float) else v for k, v in vars(batch.hyper).items()}
    state = {k: v if v.dim() else next(left) for k, v in piece.state.items()}
    batch = replace(batch, hyper=Values(**hyper), bound=bound)
    return batch, piece._replace(t=t, scale=scale, state=state)


def kind(compute: Compute, batch: Batch, piece: Piece) -> Hashable | None:
    """What a program depends on beside numbers; None if that cannot be told."""
    rule, param = batch.rule, piece.param
    static = {k: v for k, v in vars(batch.hyper).items() if not isinstance(v, float)}
    if any(isinstance(value, Tensor) for value in static.values()):
        return None
    return (
        compute, rule.name, rule.update, rule.core, rule.model, rule.weight_decay_mode,
        rule.still_first, batch.mode, batch.bound is None, batch.maximize, *static.items(),
        param.dim(), param.dtype, param.device, is_kept(piece), *piece.state,
    )  # fmt: skip


@dataclass(frozen=True)
class Template:
    """A program whose numbers are on a tape, and what the numbers of the state become."""

    program: Program
    tape: Tape
    numbers: Mapping[str, At | Tensor]

    def fill(self, numbers: Sequence[Any]) -> tuple[Program, State] | None:
        """The program for these numbers; None if they decide otherwise."""
        values = self.tape.again(numbers)
        if values is None:
            return None
        after = {k: values[v.index] if isinstance(v, At) else v for k, v in self.numbers.items()}
        return self.program.fill(values), after


_templates: dict[Hashable, deque[Template]] = {}


class Repeated:
    """The large parameters of a batch; ``compute`` gives what becomes of a piece."""

    def __init__(self, batch: Batch, compute: Compute) -> None:
        self.batch, self.compute = batch, compute
        self.known: dict[Hashable, tuple[Program | None, State]] = {}
        self.memory = Memory()

    def step(self, piece: Piece) -> Computed | None:
        """Step a parameter in place; its sums, and the new numbers of its state.

        None: nothing is done, and it has to be stepped the ordinary way. So is a small one, but for
        those that are like a large one before them.
        """
        key = self.key(piece)
        if key is None or (piece.param.numel() < LEAST and key not in self.known):
            return None
        parts = cut(arrays(piece))
        if parts is None:
            return None
        if key not in self.known:
            self.known[key] = self.filled(piece, parts[0])
        again, numbers = self.known[key]
        return None if again is None else Computed(None, numbers, again.run(parts, self.memory))

    def key(self, piece: Piece) -> Hashable | None:
        """What pieces have in common that are stepped alike; None for what cannot be repeated."""
        param, dtype = piece.param, compute_dtype(piece.param.dtype)
        numbers = [value for value in piece.state.values() if not value.dim()]
        if not (
            piece.compensation is None
            and not isinstance(piece.scale, Tensor)
            and all(t.shape == param.shape and t.dtype == dtype for t in arrays(piece))
            and all(number.device.type == "cpu" for number in numbers)
        ):
            return None
        now = (number.item() for number in numbers)
        return (piece.t, piece.scale, param.dim(), param.dtype, param.device,
                is_kept(piece), *piece.state, *now)  # fmt: skip

    def filled(self, piece: Piece, first: Sequence[Tensor]) -> tuple[Program | None, State]:
        """A program with the numbers of this step, from a template if there can be one."""
        key, numbers = kind(self.compute, self.batch, piece), given(self.batch, piece)
        for template in [*_templates.get(key, deque())]:
            found = template.fill(numbers)
            if found is not None:
                return found
        made = None if key is None else self.template(piece, first, numbers)
        found = None if made is None else made.fill(numbers)
        if made is not None and found is not None:
            _templates.setdefault(key, deque(maxlen=DECISIONS)).appendleft(made)
            return found
        plain = self.record(piece, first, numbers, None)
        if plain is None:
            return None, {}
        after = {k: v for k, v in plain.numbers.items() if isinstance(v, Tensor)}
        return program(plain, first[0], is_kept(piece)).fill(()), after

    def template(
        self, piece: Piece, first: Sequence[Tensor], numbers: Sequence[Any]
    ) -> Template | None:
        """A recording whose numbers are on a tape; None if some would go another way.

        It is made twice, with numbers that differ slightly: what both have in common does not
        depend on them, but for what is on the tape.
        """
        t, scale, *rest = numbers
        other = [t + 1, scale * (1 if scale == 1 else SLIGHTLY), *(n * SLIGHTLY for n in rest)]
        tapes = Tape(numbers), Tape(other)
        one, two = (self.record(piece, first, tape.values, tape) for tape in tapes)
        found = None
        if one is not None and two is not None and text(one) == text(two):
            found = Template(program(one, first[0], is_kept(piece)), tapes[0], one.numbers)
        for tape in tapes:
            tape.end()
        return found

    def record(
        self, piece: Piece, first: Sequence[Tensor], numbers: Sequence[Any], tape: Tape | None
    ) -> Recording | None:
        """What a step does to some entries of a piece."""
        shape = (*[1] * (piece.param.dim() - 1), -1)
        few = iter([tensor[:RECORDED].view(shape) for tensor in first])
        param, grad = next(few), next(few)
        state = {k: next(few) if v.dim() else v for k, v in piece.state.items()}
        part = piece._replace(param=param, grad=grad, state=state)
        used = [n.clone() if isinstance(n, Tensor) else n for n in numbers]
        tensors = {index: n for index, n in enumerate(used) if isinstance(n, Tensor)}
        if tape is not None:
            used = [n if isinstance(n, Tensor) else Traced.on(tape, i) for i, n in enumerate(used)]
        batch, part = with_numbers(self.batch, part, used)

        def body() -> Made:
            new = self.compute(batch, part)
            rest = [new.state.get(key) for key, value in part.state.items() if value.dim()]
            after = {k: v for k, v in new.state.items() if not part.state[k].dim()}
            return Made([new.param, None, *rest], new.sums, after)

        return record(arrays(part), body, tape, tensors if tape is not None else {})


def text(recording: Recording) -> list[object]:
    """A recording but for numbers that are on a tape."""

    def shown(arg: object) -> object:
        return arg.index if isinstance(arg, Traced) else repr(arg)

    steps = [
        (step.call, [*map(shown, step.args)], {k: shown(v) for k, v in step.kwargs.items()})
        for step in recording.steps
    ]
    numbers = {k: v if isinstance(v, At) else repr(v) for k, v in recording.numbers.items()}
    return [steps, recording.results, recording.outputs, numbers]
