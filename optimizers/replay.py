"""One rule over many pieces: what it does to a few entries is repeated for all of them in place.

A pure rule allocates what it returns and has it copied afterwards, which is a fifth of an eager
step. So the torch operations on a few entries are written down, and done again for whole pieces of
the same age and scale with their results in reused buffers, or straight in the state and the
parameter once nobody needs what was there, and in fewer calls (`optimizers.rewriting`). Numbers in
the state (0-D tensors) are constants of what was written down. What is not entry by entry is left
to the ordinary way.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from operator import itemgetter
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from optimizers.core import State
from optimizers.precision import compute_dtype
from optimizers.rewriting import Place, Step, fewer

if TYPE_CHECKING:
    from optimizers.engines import Piece

LEAST = 2**15  # entries that are worth a recording
COPY = torch.ops.aten.clone.out


@cache
def writing(func: Any) -> Any:
    """The form of a torch operation that writes into ``out``; None without one.

    Those that Python has are half as slow to call as those it does not.
    """
    name = func._overloadname
    out = "out" if name in ("Tensor", "default") else f"{name}_out"
    found = getattr(func.overloadpacket, out, None)
    if found is None or torch.Tag.generated in found.tags:
        return found
    return getattr(torch, func.overloadpacket.__name__, found)


def is_identity(func: Any, args: Sequence[Any]) -> bool:
    """Whether an operation multiplies by one."""
    return str(func) == "aten.mul.Tensor" and isinstance(args[1], float) and args[1] == 1.0


@dataclass(frozen=True)
class Operation:
    """One call: ``arguments`` takes its own from a list of inputs, buffers and constants, into
    whose place ``result`` it writes.
    """

    call: Callable[..., Any]
    arguments: Callable[[list[Any]], tuple[Any, ...]]
    kwargs: dict[str, Any]
    result: int


class Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Writes down what is done to tensors of one shape."""

    def __init__(self, inputs: Sequence[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.kind = (inputs[0].shape, inputs[0].dtype)
        self.numbers = {id(tensor): number for number, tensor in enumerate(inputs)}
        self.alive = [*inputs]  # an id names a tensor only while it lives
        self.same: list[Tensor] = []  # as one of the others, but another object
        self.steps: list[Step] = []
        self.complete = True

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # the alternative imports torch._dynamo, which takes as long as torch itself

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> object:
        """Do one operation and write it down."""
        result, kwargs = func(*args, **(kwargs or {})), kwargs or {}
        tensors = [arg for arg in (*args, *kwargs.values()) if isinstance(arg, Tensor)]
        if not any(tensor.dim() for tensor in tensors):
            return result  # of numbers alone: a constant
        if is_identity(func, args) and id(args[0]) in self.numbers:
            self.numbers[id(result)] = self.numbers[id(args[0])]
            self.same.append(result)
            return result
        known = all(id(tensor) in self.numbers or not tensor.dim() for tensor in tensors)
        same = isinstance(result, Tensor) and (result.shape, result.dtype) == self.kind
        fresh = same and id(result) not in self.numbers and not func.is_view
        self.complete = self.complete and known and fresh and writing(func) is not None
        if self.complete:
            named = tuple(
                Place(self.numbers[id(arg)]) if id(arg) in self.numbers else arg for arg in args
            )
            self.complete = not any(isinstance(value, Tensor) for value in kwargs.values())
            self.numbers[id(result)] = len(self.alive)
            self.alive.append(result)
            self.steps.append(Step(writing(func), named, self.numbers[id(result)], kwargs))
        return result


class Replay:
    """What was recorded of one piece, for pieces that differ in nothing but their entries."""

    def __init__(
        self, operations: list[Operation], buffers: list[Tensor], constants: list[Any], size: int
    ) -> None:
        self.operations, self.buffers, self.constants = operations, buffers, constants
        self.size = size

    def run(self, inputs: Sequence[Tensor]) -> None:
        """Step one piece in place; it has at most as many entries as the recorded one."""
        size = inputs[0].numel()
        few = self.buffers if size == self.size else [buffer[:size] for buffer in self.buffers]
        places = [*inputs, *few, *self.constants]
        for operation in self.operations:
            args = operation.arguments(places)
            operation.call(*args, **operation.kwargs, out=places[operation.result])


def record(
    inputs: Sequence[Tensor], body: Callable[[], Sequence[Tensor | None]], size: int
) -> Replay | None:
    """Run ``body``, whose results are the new values of the inputs, or None for those that stay.

    Returns how to repeat it in place for inputs of up to ``size`` entries, or None if it cannot be.
    """
    recorder = Recorder(inputs)
    held = {id(tensor): place for place, tensor in enumerate(inputs)}
    results: list[Tensor | None] = []
    with recorder:
        for place, result in enumerate(body()):
            other = id(result) in held and held[id(result)] != place
            results.append(result.clone() if result is not None and other else result)
    own = [None if r is None else recorder.numbers.get(id(r), -1) for r in results]
    if not recorder.complete or -1 in own:
        return None
    own = [None if number == place else number for place, number in enumerate(own)]
    steps = fewer(recorder.steps, {number for number in own if number is not None})
    return plan(steps, own, recorder.alive[0].new_empty(0), size)


def plan(
    steps: Sequence[Step], results: Sequence[int | None], like: Tensor, size: int
) -> Replay | None:
    """Give every value a place: that of the input it replaces, or a buffer that is free.

    None if an input comes out in another's place unchanged.
    """
    inputs = len(results)
    last = dict.fromkeys((*range(inputs), *(step.result for step in steps)), -1)  # read last by
    for index, step in enumerate(steps):
        last |= {arg.number: index for arg in step.args if isinstance(arg, Place)}
    made = {step.result: index for index, step in enumerate(steps)}
    goals: dict[int, int] = {}
    late: list[tuple[int, int]] = []  # what was there is still needed: copied at the end
    for place, value in enumerate(results):
        if value is None:
            continue
        if value < inputs:
            return None
        if value not in goals and last[place] <= made[value]:
            goals[value] = place
        else:
            late.append((value, place))
            last[value] = len(steps)
    places = {number: number for number in range(inputs)}
    free: list[int] = []
    count, placed = inputs, []
    for index, step in enumerate(steps):
        named = tuple(Place(places[a.number]) if isinstance(a, Place) else a for a in step.args)
        for arg in {a.number for a in step.args if isinstance(a, Place)}:
            if arg >= inputs and arg not in goals and last[arg] == index:
                free.append(places[arg])
        value = step.result
        if value in goals:
            places[value] = goals[value]
        elif free:
            places[value] = free.pop()
        else:
            places[value], count = count, count + 1
        placed.append(replace(step, args=named, result=places[value]))
    placed += [Step(COPY, (Place(places[value]),), place) for value, place in late]
    buffers = [like.new_empty(size) for _ in range(count - inputs)]
    return assemble(placed, buffers, count, like, size)


def assemble(
    steps: Sequence[Step], buffers: list[Tensor], count: int, like: Tensor, size: int
) -> Replay:
    """Steps whose places are those of ``count`` inputs and buffers, ready to be called."""
    constants: list[Any] = []
    operations = []
    for step in steps:
        numbers = []
        for position, arg in enumerate(step.args):
            if isinstance(arg, Place):
                numbers.append(arg.number)
                continue
            numbers.append(count + len(constants))
            first = position == 0 and not isinstance(arg, Tensor)  # where torch wants a tensor
            constants.append(like.new_tensor(arg) if first else arg)
        get = itemgetter(*numbers) if len(numbers) > 1 else only(numbers[0])
        operations.append(Operation(step.call, get, step.kwargs, step.result))
    return Replay(operations, buffers, constants, size)


def only(number: int) -> Callable[[list[Any]], tuple[Any, ...]]:
    """As an `itemgetter` of several numbers, of one."""
    return lambda places: (places[number],)


def arrays(part: Piece) -> list[Tensor]:
    """What a part is made of, but for numbers."""
    return [part.param, part.grad, *(value for value in part.state.values() if value.dim())]


class Repeated:
    """Large pieces that are recorded once per age, scale and state.

    ``compute`` gives the new parameter of a piece, or None where that stays, and its new state.
    """

    def __init__(self, compute: Callable[[Piece], tuple[Tensor | None, State]]) -> None:
        self.compute = compute
        self.known: dict[object, tuple[Replay | None, State]] = {}

    def step(self, part: Piece) -> State | None:
        """Step one part in place; the new numbers of its state, which all parts share.

        None: nothing is done, and it has to be stepped the ordinary way.
        """
        found = self.find(part)
        if found is None:
            return None
        again, numbers = found
        again.run(arrays(part))
        return numbers

    def find(self, part: Piece) -> tuple[Replay, State] | None:
        """How a part and smaller ones of the same parameter are stepped, and their new numbers."""
        numbers = [value for value in part.state.values() if not value.dim()]
        inputs, dtype = arrays(part), compute_dtype(part.param.dtype)
        fits = (
            part.compensation is None
            and part.param.dim() == 1
            and part.param.numel() >= LEAST
            and all(t.shape == part.param.shape and t.dtype == dtype for t in inputs)
            and all(value.device.type == "cpu" for value in numbers)
        )
        if not fits:
            return None
        now = tuple(value.item() for value in numbers)
        key = (part.t, part.scale, dtype, part.param.device, *part.state, *now)
        again, after = self.known.get(key, (None, {}))
        if key not in self.known or (again is not None and again.size < part.param.numel()):
            again, after = self.known[key] = self.record(part, inputs)
        return None if again is None else (again, after)

    def record(self, part: Piece, inputs: Sequence[Tensor]) -> tuple[Replay | None, State]:
        """How to repeat a part, and the new numbers of its state."""
        few = iter([tensor[:LEAST] for tensor in inputs])
        numbers = {key for key, value in part.state.items() if not value.dim()}
        cut = replace(part, param=next(few), grad=next(few))
        state = {k: v.clone() if k in numbers else next(few) for k, v in part.state.items()}
        cut = replace(cut, state=state)
        after: State = {}

        def body() -> list[Tensor | None]:
            new, changed = self.compute(cut)
            after.update({key: changed[key] for key in numbers if key in changed})
            return [new, None, *(changed.get(key) for key in state if key not in numbers)]

        return record(arrays(cut), body, part.param.numel()), after
