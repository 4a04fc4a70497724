"""Numbers that know how they were computed, so that it can be done again with others.

A rule computes what it multiplies by from hyperparameters and the count of updates. With `Traced`
numbers in their place, arithmetic goes onto a `Tape`. So does every outcome that Python asks for
(``t == 1``, ``if weight_decay``): the tape holds for other numbers as long as they decide the same.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class At:
    """An argument that is on the tape."""

    index: int


@dataclass(frozen=True)
class Entry:
    """``func(*args)``, whose value comes next, or has to be ``outcome`` if it is a decision."""

    func: Callable[..., Any]
    args: tuple[Any, ...]
    decision: bool = False
    outcome: Any = None


class Tape:
    """Inputs, and what was computed of them."""

    def __init__(self, inputs: Sequence[Any]) -> None:
        self.values = list(inputs)
        self.entries: list[Entry] = []
        self.known: dict[object, int] = {}
        self.ended = False

    def at(self, index: int) -> Any:
        """A value; a number knows where it is."""
        value = self.values[index]
        return Traced.on(self, index) if isinstance(value, float) else value

    def place(self, value: Any) -> Any:
        """An argument as an entry holds it; a number of another tape is a constant."""
        if not isinstance(value, Traced):
            return value
        return At(value.index) if value.tape is self else float.__pos__(value)

    def compute(self, func: Callable[..., Any], places: tuple[Any, ...]) -> Any:
        """Call a function of what is at places, and of constants."""
        return func(*(self.values[p.index] if isinstance(p, At) else p for p in places))

    def call(self, func: Callable[..., Any], *args: Any) -> Any:
        """Compute something that is on the tape then."""
        places = tuple(map(self.place, args))
        if self.ended:
            return self.compute(func, places)
        if (func, places) not in self.known:
            self.known[func, places] = self.add(func, places, self.compute(func, places))
        return self.at(self.known[func, places])

    def add(self, func: Callable[..., Any], places: tuple[Any, ...], value: Any) -> int:
        """Say how a value was computed; its index."""
        self.entries.append(Entry(func, places))
        self.values.append(value)
        return len(self.values) - 1

    def decide(self, func: Callable[..., Any], *args: Any) -> Any:
        """Compute something that has to come out the same when the tape is used again."""
        places = tuple(map(self.place, args))
        outcome = self.compute(func, places)
        if not self.ended and (func, places) not in self.known:
            self.known[func, places] = -1
            self.entries.append(Entry(func, places, True, outcome))
        return outcome

    def end(self) -> None:
        """Take nothing more: who kept a number of this tape has an ordinary one from now on."""
        self.values = [value if isinstance(value, float) else None for value in self.values]
        self.known, self.ended = {}, True

    def again(self, inputs: Sequence[Any]) -> list[Any] | None:
        """All values for other inputs; None if these decide otherwise."""
        values = list(inputs)
        try:
            for entry in self.entries:
                args = [values[a.index] if isinstance(a, At) else a for a in entry.args]
                value = entry.func(*args)
                if not entry.decision:
                    values.append(value)
                elif value != entry.outcome:
                    return None
        except ArithmeticError:  # what was recorded did not get there
            return None
        return values


class Traced(float):
    """A number on a tape."""

    tape: Tape
    index: int

    @classmethod
    def on(cls, tape: Tape, index: int) -> Traced:
        """The number at this place of a tape."""
        made = cls(tape.values[index])
        made.tape, made.index = tape, index
        return made

    def __hash__(self) -> int:
        return super().__hash__()


def resolved(value: Any, values: Sequence[Any]) -> Any:
    """A number as it is this time."""
    return values[value.index] if isinstance(value, Traced) else value


def binary(func: Callable[..., Any], *, swapped: bool = False, decides: bool = False) -> Any:
    """The method of `Traced` for an operator of two numbers."""

    def method(self: Traced, other: Any) -> Any:
        if not isinstance(other, int | float):  # a tensor knows what to do
            return NotImplemented
        args = (other, self) if swapped else (self, other)
        return self.tape.decide(func, *args) if decides else self.tape.call(func, *args)

    return method


def unary(func: Callable[..., Any], *, decides: bool = False) -> Any:
    """The method of `Traced` for a function of one number."""

    def method(self: Traced) -> Any:
        return self.tape.decide(func, self) if decides else self.tape.call(func, self)

    return method


for _name in ("add", "sub", "mul", "truediv", "pow", "mod", "floordiv"):
    _func = getattr(operator, _name)
    setattr(Traced, f"__{_name}__", binary(_func))
    setattr(Traced, f"__r{_name}__", binary(_func, swapped=True))
for _name in ("eq", "ne", "lt", "le", "gt", "ge"):
    setattr(Traced, f"__{_name}__", binary(getattr(operator, _name), decides=True))
for _name in ("neg", "pos", "abs"):
    setattr(Traced, f"__{_name}__", unary(getattr(operator, _name)))
for _name, _func in (("bool", bool), ("int", int), ("float", float), ("trunc", int)):
    setattr(Traced, f"__{_name}__", unary(_func, decides=True))
