"""One rule over many pieces: what it does to a few entries is repeated for all of them in place.

A pure rule allocates what it returns and has it copied afterwards, which is a fifth of an eager
step. So the torch operations on a few entries are written down, and done again for whole pieces of
the same age and scale with their results in reused buffers, or straight in the state and the
parameter once nobody needs what was there. What is not entry by entry is left to the ordinary way.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

LEAST = 2**15  # entries that are worth a recording


@cache
def writing(func: Any) -> Any:
    """The form of a torch operation that writes into ``out``; None without one."""
    name = func._overloadname
    out = "out" if name in ("Tensor", "default") else f"{name}_out"
    return getattr(func.overloadpacket, out, None)


@dataclass(frozen=True)
class Place:
    """Where an argument is: the number of an input or of a buffer."""

    number: int


@dataclass(frozen=True)
class Operation:
    """One call, and the place of its result."""

    call: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    result: Place


class Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Writes down what is done to tensors of one shape."""

    def __init__(self, inputs: Sequence[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.kind = (inputs[0].shape, inputs[0].dtype)
        self.numbers = {id(tensor): number for number, tensor in enumerate(inputs)}
        self.alive = [*inputs]  # an id names a tensor only while it lives
        self.steps: list[tuple[Any, list[Any], dict[str, Any], int]] = []
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
        known = all(id(tensor) in self.numbers for tensor in tensors)
        same = isinstance(result, Tensor) and (result.shape, result.dtype) == self.kind
        fresh = same and id(result) not in self.numbers and not func.is_view
        self.complete = self.complete and known and fresh and writing(func) is not None
        if self.complete:
            named = [Place(self.numbers[id(a)]) if isinstance(a, Tensor) else a for a in args]
            self.complete = not any(isinstance(value, Tensor) for value in kwargs.values())
            self.numbers[id(result)] = len(self.alive)
            self.alive.append(result)
            self.steps.append((writing(func), named, kwargs, self.numbers[id(result)]))
        return result


class Replay:
    """What was recorded of one piece, for pieces that differ in nothing but their entries."""

    def __init__(self, operations: list[Operation], buffers: list[Tensor], size: int) -> None:
        self.operations, self.buffers, self.size = operations, buffers, size

    def run(self, inputs: Sequence[Tensor]) -> None:
        """Step one piece in place; it has at most as many entries as the recorded one."""
        size = inputs[0].numel()
        places = [*inputs, *(buffer[:size] for buffer in self.buffers)]
        for operation in self.operations:
            args = [places[a.number] if type(a) is Place else a for a in operation.args]
            operation.call(*args, **operation.kwargs, out=places[operation.result.number])


def record(
    inputs: Sequence[Tensor], body: Callable[[], Sequence[Tensor | None]], size: int
) -> Replay | None:
    """Run ``body``, whose results are the new values of the inputs, or None for those that stay.

    Returns how to repeat it in place for inputs of up to ``size`` entries, or None if it cannot be.
    """
    recorder = Recorder(inputs)
    with recorder:
        results = body()
    own = [recorder.numbers.get(id(result)) for result in results]
    if not recorder.complete or None in [
        o for o, result in zip(own, results, strict=True) if result is not None
    ]:
        return None
    return plan(recorder, own, size)


def plan(recorder: Recorder, results: Sequence[int | None], size: int) -> Replay | None:
    """Give every value a place: that of the input it replaces, or a buffer that is free."""
    inputs = len(results)
    last = dict.fromkeys(range(len(recorder.alive)), -1)  # the operation that reads a value last
    for index, (_, args, _, _) in enumerate(recorder.steps):
        last |= {arg.number: index for arg in args if isinstance(arg, Place)}
    goals = {value: place for place, value in enumerate(results) if value is not None}
    if len(goals) != sum(value is not None for value in results) or min(goals, default=0) < inputs:
        return None  # one value for two inputs, or an input for another
    places = {number: number for number in range(inputs)}
    free: list[int] = []
    count, operations = inputs, []
    for index, (call, args, kwargs, value) in enumerate(recorder.steps):
        named = tuple(Place(places[a.number]) if isinstance(a, Place) else a for a in args)
        if value in goals and last[goals[value]] > index:
            return None  # what was there is still needed
        for arg in {a.number for a in args if isinstance(a, Place)}:
            if arg >= inputs and arg not in goals and last[arg] == index:
                free.append(places[arg])
        if value in goals:
            places[value] = goals[value]
        elif free:
            places[value] = free.pop()
        else:
            places[value], count = count, count + 1
        operations.append(Operation(call, named, kwargs, Place(places[value])))
    like = recorder.alive[0]
    buffers = [like.new_empty(size) for _ in range(count - inputs)]
    return Replay(operations, buffers, size)
