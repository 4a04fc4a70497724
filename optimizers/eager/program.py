"""Recorded steps made ready to be repeated in place, over all pieces of a parameter.

A pure rule allocates what it returns and has it copied afterwards, which is a fifth of an eager
step. Repeated, its operations leave their results in reused buffers, or straight in the state and
the parameter once nobody needs what was there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from operator import itemgetter
from typing import Any, NamedTuple

import torch
from torch import Tensor

from optimizers.eager.calls import COMBINED, copied
from optimizers.eager.phases import Phases
from optimizers.eager.recording import Recording
from optimizers.eager.rewriting import Place, Step, fewer
from optimizers.eager.tape import resolved


class Operation(NamedTuple):
    """One call: ``arguments`` takes its own from a list of inputs, buffers and constants, into
    whose place ``result`` it writes.
    """

    call: Callable[..., Any]
    arguments: Callable[[list[Any]], tuple[Any, ...]]
    kwargs: Mapping[str, Any]
    result: int

    def fill(self, values: Sequence[Any]) -> Operation:
        """The same with this time's numbers."""
        if not self.kwargs:
            return self
        kwargs = {key: resolved(value, values) for key, value in self.kwargs.items()}
        return Operation(self.call, self.arguments, kwargs, self.result)


class Memory:
    """Vectors that come back when they are asked for again."""

    def __init__(self) -> None:
        self.whole: dict[object, list[Tensor]] = {}
        self.cut: dict[object, list[Tensor]] = {}
        self.lent: Tensor | None = None

    def lend(self, vector: Tensor) -> None:
        """Memory for what is made from now on, as far as it goes; others use it at other times."""
        if not self.whole:
            self.lent = vector

    def make(self, like: Tensor, size: int) -> Tensor:
        """One vector."""
        lent, kind = self.lent, (like.dtype, like.device)
        if lent is None or len(lent) < size or (lent.dtype, lent.device) != kind:
            return like.new_empty(size)
        own, self.lent = lent[:size], lent[size:]
        return own

    def take(self, use: str, count: int, like: Tensor, size: int) -> list[Tensor]:
        """Vectors of that many entries, of the dtype and device of another tensor."""
        key = (use, count, like.dtype, like.device)
        if (key, size) not in self.cut:
            whole = self.whole.get(key)
            if whole is None or any(vector.numel() < size for vector in whole):
                whole, self.whole[key], self.cut = None, [], {}  # what is too small goes first
                whole = self.whole[key] = [self.make(like, size) for _ in range(count)]
            self.cut[key, size] = [vector[:size] for vector in whole]
        return self.cut[key, size]


@dataclass(frozen=True)
class Replay:
    """What was recorded of one piece, for pieces that differ in nothing but their entries."""

    operations: Sequence[Operation]
    buffers: int
    constants: Sequence[Any]
    scalars: Mapping[int, Tensor]  # where torch wants a tensor for a constant, and of what kind

    def fill(self, values: Sequence[Any]) -> Replay:
        """The same with this time's numbers."""
        constants = [resolved(value, values) for value in self.constants]
        for place, like in self.scalars.items():
            constants[place] = like.new_tensor(constants[place])
        operations = [operation.fill(values) for operation in self.operations]
        return Replay(operations, self.buffers, constants, {})

    def run(self, inputs: Sequence[Any], memory: Memory) -> None:
        """Step one piece in place."""
        buffers = memory.take("buffers", self.buffers, inputs[0], inputs[0].numel())
        places = [*inputs, *buffers, *self.constants]
        for call, arguments, kwargs, result in self.operations:
            call(*arguments(places), **kwargs, out=places[result])


@dataclass(frozen=True)
class Walk:
    """One phase: a replay for every piece, sums over them, and what follows on these numbers.

    ``sums`` are places among the numbers and how those of pieces are combined.
    """

    replay: Replay
    sums: Sequence[tuple[int, Callable[[Tensor], Tensor]]]
    after: Sequence[Step]

    def fill(self, values: Sequence[Any]) -> Walk:
        """The same with this time's numbers."""
        after = [
            replace(step, args=tuple(resolved(arg, values) for arg in step.args))
            for step in self.after
        ]
        return Walk(self.replay.fill(values), self.sums, after)

    def numbers(self, known: list[Any]) -> None:
        """Compute what follows on the sums."""
        for step in self.after:
            args = [known[arg.number] if isinstance(arg, Place) else arg for arg in step.args]
            known[step.result] = step.call(*args, **step.kwargs)


@dataclass(frozen=True)
class Program:
    """All phases of one update; ``numbers`` and ``kept`` values go from one to the next."""

    walks: Sequence[Walk]
    numbers: int
    kept: int
    outputs: Mapping[str, int]

    def fill(self, values: Sequence[Any]) -> Program:
        """The same with this time's numbers."""
        return replace(self, walks=[walk.fill(values) for walk in self.walks])

    def run(self, parts: Sequence[Sequence[Tensor]], memory: Memory) -> dict[str, Tensor]:
        """Step one parameter, whose pieces these are, in place; the sums that were asked for."""
        kept = self.keep(parts, memory)
        known: list[Any] = [None] * self.numbers
        for walk in self.walks:
            # a row for every sum, a column for every piece
            rows = parts[0][0].new_empty(len(walk.sums), len(parts)).unbind() if walk.sums else ()
            columns = [*zip(*(row.unbind() for row in rows), strict=True)] or [()] * len(parts)
            for number, (part, column) in enumerate(zip(parts, columns, strict=True)):
                for (place, _), slot in zip(walk.sums, column, strict=True):
                    known[place] = slot
                walk.replay.run([*part, *known, *(values[number] for values in kept)], memory)
            for (place, combined), row in zip(walk.sums, rows, strict=True):
                known[place] = combined(row)
            walk.numbers(known)
        return {key: known[place] for key, place in self.outputs.items()}

    def keep(self, parts: Sequence[Sequence[Tensor]], memory: Memory) -> list[Sequence[Tensor]]:
        """Memory for the values that are kept, in pieces."""
        sizes = [part[0].numel() for part in parts]
        whole = memory.take("kept", self.kept, parts[0][0], sum(sizes))
        return [torch.split(vector, sizes) for vector in whole]


def program(recording: Recording, like: Tensor, keep: bool = False) -> Program:
    """How to repeat a recording; with ``keep``, in memory as large as the parameter."""
    phases = Phases(recording, keep)
    arrays = len(recording.results)
    walks = []
    for phase in phases.run():
        wanted = {value for value in phase.results if value is not None}
        again = plan(fewer(phase.steps, wanted), phase.results, like)
        made = {step.result: step.call for step in phase.steps}
        places = enumerate(phase.results[arrays : arrays + len(phases.single)])
        sums = [(place, COMBINED[made[value]]) for place, value in places if value is not None]
        walks.append(Walk(again, sums, phase.after))
    outputs = {key: phases.single[value] for key, value in recording.outputs.items()}
    return Program(walks, len(phases.single), len(phases.kept), outputs)


def plan(steps: Sequence[Step], results: Sequence[int | None], like: Tensor) -> Replay:
    """Give every value a place: that of the input it replaces, else one where nothing is needed.

    What was read for the last time is written over where it is, as that is in the cache: an input
    that will be replaced, too.
    """
    inputs = len(results)
    last = dict.fromkeys((*range(inputs), *(step.result for step in steps)), -1)  # read last by
    for index, step in enumerate(steps):
        last |= {arg.number: index for arg in step.args if isinstance(arg, Place)}
    made = {step.result: index for index, step in enumerate(steps)}
    goals: dict[int, int] = {}
    late: dict[int, list[tuple[int, int]]] = {}  # copied after a step that still needs the old
    for place, value in enumerate(results):
        if value is None:
            continue
        if value not in goals and last[place] <= made[value]:
            goals[value] = place
        else:
            after = max(last[place], made[value])
            late.setdefault(after, []).append((value, place))
            last[value] = max(last[value], after + 1)
    until = {place: made[value] for value, place in goals.items()}  # it is free for others
    places = {number: number for number in range(inputs)}
    free: list[int] = []
    count, placed = inputs, []
    for index, step in enumerate(steps):
        named = tuple(Place(places[a.number]) if isinstance(a, Place) else a for a in step.args)
        for arg in {a.number for a in step.args if isinstance(a, Place)}:
            if last[arg] == index and arg not in goals and (arg >= inputs or arg in until):
                free.append(places[arg])
        value = step.result
        usable = [p for p in free if p >= inputs or last[value] <= until[p]]
        if value in goals:
            places[value] = goals[value]
        elif usable:
            places[value] = usable[-1]
            free.remove(usable[-1])
        else:
            places[value], count = count, count + 1
        free = [place for place in free if place != places[value]]
        placed.append(replace(step, args=named, result=places[value]))
        for value, place in late.get(index, ()):
            placed.append(Step(copied, (Place(places[value]),), place))
            if value not in goals:  # from now on it is where it has to be
                free += [places[value]] if places[value] >= inputs else []
                goals[value] = places[value] = place
    return assemble(placed, count, count - inputs, like)


def assemble(steps: Sequence[Step], count: int, buffers: int, like: Tensor) -> Replay:
    """Steps whose places are those of ``count`` inputs and buffers, ready to be called."""
    constants: list[Any] = []
    scalars: dict[int, Tensor] = {}
    operations = []
    for step in steps:
        numbers = []
        for position, arg in enumerate(step.args):
            if isinstance(arg, Place):
                numbers.append(arg.number)
                continue
            numbers.append(count + len(constants))
            if position == 0 and not isinstance(arg, Tensor):
                scalars[len(constants)] = like.new_empty(())
            constants.append(arg)
        get = itemgetter(*numbers) if len(numbers) > 1 else only(numbers[0])
        operations.append(Operation(step.call, get, step.kwargs, step.result))
    return Replay(operations, buffers, constants, scalars)


def only(number: int) -> Callable[[list[Any]], tuple[Any, ...]]:
    """As an `itemgetter` of several numbers, of one."""
    return lambda places: (places[number],)
