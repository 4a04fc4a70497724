"""What a rule does to a few entries, written down operation by operation.

Every operation on entries has to be entry by entry, or a norm or sum over all of them; what is
computed of such sums alone is written down, too. All other numbers are constants.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from optimizers.calls import SUMS, writing
from optimizers.rewriting import Place, Step


@dataclass(frozen=True)
class Recording:
    """``steps`` over inputs, which have the first numbers.

    ``results`` says for every input which value replaces it, or None; ``outputs`` which numbers
    made of sums are asked for.
    """

    steps: list[Step]
    results: list[int | None]
    outputs: Mapping[str, int]

    @property
    def single(self) -> dict[int, int]:
        """The values that are numbers, in the order in which they are made, counted."""
        made = [step.result for step in self.steps if is_single(step)]
        return {value: count for count, value in enumerate(made)}


def is_single(step: Step) -> bool:
    """Whether a step makes a number."""
    tensors = [arg for arg in step.args if isinstance(arg, Place)]
    return step.call in SUMS.values() or all(place.single for place in tensors)


def is_identity(func: Any, args: Sequence[Any]) -> bool:
    """Whether an operation multiplies by one."""
    return str(func) == "aten.mul.Tensor" and isinstance(args[1], float) and args[1] == 1.0


class Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Writes down what is done to tensors of one shape."""

    def __init__(self, inputs: Sequence[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.kind = (inputs[0].shape, inputs[0].dtype)
        self.places = {id(tensor): Place(number) for number, tensor in enumerate(inputs)}
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
        known = [tensor for tensor in tensors if id(tensor) in self.places]
        if not known and not any(tensor.dim() for tensor in tensors):
            return result  # of numbers alone: a constant
        if is_identity(func, args) and id(args[0]) in self.places:
            self.places[id(result)] = self.places[id(args[0])]
            self.same.append(result)
            return result
        call, single = self.call(func, args, kwargs, result)
        usable = all(id(tensor) in self.places or not tensor.dim() for tensor in tensors)
        fresh = id(result) not in self.places and not func.is_view
        named = not any(isinstance(value, Tensor) for value in kwargs.values())
        self.complete = self.complete and usable and fresh and named and call is not None
        if self.complete and call is not None:
            arguments = tuple(self.places.get(id(arg), arg) for arg in args)
            if call in SUMS.values():
                arguments = (*arguments, 1.0)
            place = self.places[id(result)] = Place(len(self.alive), single)
            self.alive.append(result)
            self.steps.append(Step(call, arguments, place.number, kwargs))
        return result

    def call(
        self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], result: Any
    ) -> tuple[Callable[..., Any] | None, bool]:
        """What repeats an operation, None if nothing does, and whether it makes a number."""
        if not isinstance(result, Tensor):
            return None, False
        of = [self.places.get(id(arg)) for arg in args]
        if all(place is None or place.single for place in of):
            return (None if result.dim() else func), True
        if result.dim() == 0 and len(args) == 1:
            return None if kwargs else SUMS.get(func), True
        return (writing(func) if (result.shape, result.dtype) == self.kind else None), False


@dataclass(frozen=True)
class Made:
    """New values of the inputs, None for those that stay, sums, and numbers that are constants."""

    values: Sequence[Tensor | None]
    sums: Mapping[str, Tensor]
    numbers: Sequence[Tensor]


def record(inputs: Sequence[Tensor], body: Callable[[], Made]) -> Recording | None:
    """Write down what ``body`` does to the inputs. None if something in it cannot be repeated."""
    recorder = Recorder(inputs)
    results: list[Tensor | None] = []
    with recorder:
        made = body()
        for place, result in enumerate(made.values):
            known = recorder.places.get(id(result), Place(place)).number
            other = known < len(inputs) and known != place  # an input, in another's place
            results.append(result.clone() if result is not None and other else result)
    number = {key: place.number for key, place in recorder.places.items()}
    own = [None if r is None else number.get(id(r), -1) for r in results]
    outputs = {key: number.get(id(r), -1) for key, r in made.sums.items()}
    changing = any(id(value) in number for value in made.numbers)
    if not recorder.complete or changing or -1 in (*own, *outputs.values()):
        return None
    own = [None if number == place else number for place, number in enumerate(own)]
    return Recording(recorder.steps, own, outputs)
