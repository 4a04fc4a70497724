"""What a rule does to a few entries, written down operation by operation.

Every operation on entries has to be entry by entry, or a norm or sum over all of them; what is
computed of such sums alone is written down, too. All other numbers are constants, or go onto a
`Tape` if they are `Traced`, or in 0-D tensors that are on it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from optimizers.eager.calls import SUMS, writing
from optimizers.eager.rewriting import Place, Step
from optimizers.eager.tape import At, Tape, Traced

ATEN = torch.ops.aten
WITH_NUMBERS = (ATEN.add, ATEN.sub, ATEN.mul, ATEN.div)  # do the same with a 0-D tensor's value


@dataclass(frozen=True)
class Recording:
    """``steps`` over inputs, which have the first numbers.

    ``results`` says for every input which value replaces it, or None; ``outputs`` which numbers
    made of sums are asked for, and ``numbers`` what other numbers become.
    """

    steps: list[Step]
    results: list[int | None]
    outputs: Mapping[str, int]
    numbers: Mapping[str, At | Tensor]

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
    """Whether an operation multiplies by one, whatever the numbers of the tape."""
    return str(func) == "aten.mul.Tensor" and type(args[1]) is float and args[1] == 1.0


def same(one: float, other: float) -> bool:
    """Whether two numbers are equal, NaN and NaN, too; decides nothing."""
    return float.__eq__(one, other) or (float.__ne__(one, one) and float.__ne__(other, other))


class Asked(TorchFunctionMode):
    """Tells a recorder which traced numbers a torch function gets; an operation sees values."""

    def __init__(self, recorder: Recorder) -> None:
        super().__init__()
        self.recorder = recorder

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> object:
        """Call a function."""
        kwargs, recorder = kwargs or {}, self.recorder
        numbers = [arg for arg in (*args, *kwargs.values()) if isinstance(arg, Traced)]
        recorder.asked = [number for number in numbers if number.tape is recorder.tape]
        recorder.found = set()
        result = func(*args, **kwargs)
        if any(number.index not in recorder.found for number in recorder.asked):
            recorder.complete = False  # it was made something else before it got to an operation
        recorder.asked = []
        return result


class Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Writes down what is done to tensors of one shape, and to ``numbers`` of a tape."""

    def __init__(self, inputs: Sequence[Tensor], tape: Tape, numbers: Mapping[int, Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.kind = (inputs[0].shape, inputs[0].dtype)
        self.places = {id(tensor): Place(number) for number, tensor in enumerate(inputs)}
        self.tape = tape
        self.taped = {id(tensor): index for index, tensor in numbers.items()}
        self.alive = [*inputs]  # an id names a tensor only while it lives
        self.others = [*numbers.values()]
        self.steps: list[Step] = []
        self.complete = True
        self.asked: list[Traced] = []
        self.found: set[int] = set()

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # the alternative imports torch._dynamo, which takes as long as torch itself

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> object:
        """Do one operation and write it down."""
        result, kwargs = func(*args, **(kwargs or {})), kwargs or {}
        tensors = [arg for arg in (*args, *kwargs.values()) if isinstance(arg, Tensor)]
        args = [self.number(arg) for arg in args]
        kwargs = {key: self.number(arg) for key, arg in kwargs.items()}
        known = [tensor for tensor in tensors if id(tensor) in self.places]
        if not known and not any(tensor.dim() for tensor in tensors):
            self.constant(func, args, kwargs, result)
            return result
        if is_identity(func, args) and id(args[0]) in self.places:
            self.places[id(result)] = self.places[id(args[0])]
            self.others.append(result)
            return result
        call, single = self.call(func, args, kwargs, result)
        usable = all(id(tensor) in self.places or not tensor.dim() for tensor in tensors)
        fresh = id(result) not in self.places and not func.is_view
        named = not any(isinstance(value, Tensor) for value in kwargs.values())
        self.complete = self.complete and usable and fresh and named and call is not None
        if self.complete and call is not None:
            arguments = tuple(self.argument(func, arg) for arg in args)
            if call in SUMS.values():
                arguments = (*arguments, 1.0)
            place = self.places[id(result)] = Place(len(self.alive), single)
            self.alive.append(result)
            self.steps.append(Step(call, arguments, place.number, kwargs))
        return result

    def number(self, arg: Any) -> Any:
        """An argument of an operation, traced if the function was asked with it."""
        if type(arg) is not float:
            return arg
        found = next((number for number in self.asked if same(number, arg)), None)
        if found is None:
            return arg
        self.found.add(found.index)
        return found

    def constant(self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], new: Any) -> None:
        """Note what is made of numbers alone, if it depends on the tape."""
        places = tuple(
            At(self.taped[id(arg)]) if id(arg) in self.taped else self.tape.place(arg)
            for arg in args
        )
        named = any(isinstance(value, Traced) for value in kwargs.values())
        if not named and not any(isinstance(place, At) for place in places):
            return
        if named or func.is_view or not isinstance(new, Tensor):
            self.complete = False
            return
        again = partial(func, **kwargs) if kwargs else func
        self.taped[id(new)] = self.tape.add(again, places, new)
        self.others.append(new)

    def argument(self, func: Any, arg: Any) -> Any:
        """An argument as a step holds it."""
        if id(arg) not in self.taped:
            return self.places.get(id(arg), arg)
        if func.overloadpacket not in WITH_NUMBERS:
            self.complete = False
        return self.tape.call(Tensor.item, At(self.taped[id(arg)]))

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
    """New values of the inputs, None for those that stay, sums, and numbers that are no sums."""

    values: Sequence[Tensor | None]
    sums: Mapping[str, Tensor]
    numbers: Mapping[str, Tensor]


def record(
    inputs: Sequence[Tensor],
    body: Callable[[], Made],
    tape: Tape | None = None,
    numbers: Mapping[int, Tensor] = MappingProxyType({}),
) -> Recording | None:
    """Write down what ``body`` does to the inputs. None if something in it cannot be repeated.

    ``numbers`` are the 0-D tensors among the inputs of the tape.
    """
    recorder = Recorder(inputs, tape or Tape(()), numbers)
    results: list[Tensor | None] = []
    with recorder, Asked(recorder):
        made = body()
        for place, result in enumerate(made.values):
            known = recorder.places.get(id(result), Place(place)).number
            other = known < len(inputs) and known != place  # an input, in another's place
            results.append(result.clone() if result is not None and other else result)
    number = {key: place.number for key, place in recorder.places.items()}
    own = [None if r is None else number.get(id(r), -1) for r in results]
    outputs = {key: number.get(id(r), -1) for key, r in made.sums.items()}
    changing = any(id(value) in number for value in made.numbers.values())
    if not recorder.complete or changing or -1 in (*own, *outputs.values()):
        return None
    own = [None if number == place else number for place, number in enumerate(own)]
    after = {
        key: At(recorder.taped[id(value)]) if id(value) in recorder.taped else value
        for key, value in made.numbers.items()
    }
    return Recording(recorder.steps, own, outputs, after)
