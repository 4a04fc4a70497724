"""Updates that engines may take apart: in blocks, in slices, or around a core that sees all."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import reduce
from math import isqrt, prod
from operator import add
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import torch
from torch import Tensor

if TYPE_CHECKING:
    from optimizers.core import Scalar, State, Update, Values

Known: TypeAlias = dict[str, Any]  # numbers and tensors
Pass: TypeAlias = "Callable[[Tensor, Tensor, State, Values, Scalar, Known], Known]"
Reflect: TypeAlias = "Callable[[Tensor, Tensor, Tensor], None]"


def front(vector: Tensor, shape: Sequence[int]) -> Tensor:
    """The beginning of a vector, in this shape."""
    return vector[: prod(shape)].view(torch.Size(shape))


class Target(NamedTuple):
    """A parameter that becomes ``keep`` times itself and ``size`` times a direction."""

    param: Tensor
    keep: float
    size: float


class Room(NamedTuple):
    """Two vectors to work in, and what finds reflections by compiled code, if something does.

    ``reflect(rows, inverses, memory)`` makes rows of a matrix orthogonal, one after the other, and
    writes the vectors of the reflections that do it over them: zeros before the diagonal, 1 on it.
    ``inverses`` gets 1 over what a vector takes itself times. Where there is nothing to reflect,
    the vector is zero and the inverse 1. It may work in ``memory``, a vector. ``target`` is what a
    direction may be added to.
    """

    first: Tensor
    second: Tensor
    reflect: Reflect | None = None
    target: Target | None = None

    def side(self, most: int) -> int:
        """How many rows a square has at most that fits a vector, and has no more than ``most``."""
        return min(most, isqrt(len(self.first)))


@dataclass(frozen=True)
class Blocks:
    """An update of whole matrices as passes over blocks of their rows, which fit the cache.

    Each of ``passes`` maps ``(grad, param, state, hyper, t, known)`` of some rows to what later
    passes have to know of all of them: it is added up, but for the names in ``per_row``, which
    belong to the rows they come from. ``finish`` is then the update of some rows. State with one
    entry per row is cut with them; the rest of it has to come out the same for every block. What a
    pass finds under the name of a state is that state from then on.

    A stack of matrices is cut between them, and a vector anywhere. Passes over a block of those
    follow each other at once, and ``finish`` knows only the state they found and their ``totals``,
    which are added up.

    What is ``known`` beside that: with "whole", these are all rows, and what a pass finds may be
    large; with "own", passes may write over the state, and unless this is the whole over the
    gradient. "space", "spare" and "few", if there are any, are memory for three more arrays like
    it. To ``finish``, "scale" is what still multiplies the gradient, unless passes have seen it as
    a whole.
    ``shortcut(state, hyper, t, known)`` may tell from what is known of every block of a matrix what
    the passes that are left would find, or that it cannot: None.
    """

    passes: Sequence[Pass]
    finish: Callable[[Tensor, Tensor, State, Values, Scalar, Known], tuple[Tensor, State]]
    per_row: Sequence[str] = ()
    totals: Sequence[str] = ()
    shortcut: Callable[[State, Values, float, Sequence[Known]], Known | None] | None = None

    def update(
        self, grad: Tensor, param: Tensor, state: State, hyper: Values, t: Scalar
    ) -> tuple[Tensor, State]:
        """All rows as one block: the `Rule.update` of a parameter of any shape."""
        known: Known = {"whole": True, "scale": 1.0}
        for each in self.passes:
            known |= each(grad, param, state, hyper, t, known)
        return self.finish(grad, param, state, hyper, t, known)

    def knowing(self, known: list[Known], found: list[Known]) -> list[Known]:
        """What each block of a matrix knows after a pass."""
        shared = found[0].keys() - set(self.per_row) if len(found) > 1 else set()
        total: Known = {key: reduce(add, (own[key] for own in found)) for key in shared}
        return [{**before, **own, **total} for before, own in zip(known, found, strict=True)]

    def knowing_totals(self, state: Sequence[str], found: list[Known]) -> list[Known]:
        """What each block of anything but a matrix knows after all passes."""
        total: Known = {key: reduce(add, (own[key] for own in found)) for key in self.totals}
        return [{**{key: own[key] for key in state}, **total} for own in found]


def follow(
    grad: Tensor, param: Tensor, state: State, hyper: Values, t: Scalar
) -> tuple[Tensor, State]:
    """The update of what comes out of a `Core`: it is the direction already."""
    return grad, state


@dataclass(frozen=True)
class Core:
    """An update of which only the middle has to see the whole parameter.

    ``before(grad, param, state, hyper, t) -> (values, new_state)`` is entry by entry.
    ``whole(values, hyper, memory)`` makes the direction of all of them, and may overwrite them;
    they come in the dtype that ``storage(param, hyper)`` names, and so does the direction. Both are
    stacks: parameters of one shape along a new first dimension, of which ``together(shape, dtype)``
    says how many it should be at most. ``memory`` is None, or at least ``work(shape)`` entries for
    each parameter; then everything is made in them, and the direction over the values if their
    layout allows a view.
    """

    before: Update
    whole: Callable[[Tensor, Values, Tensor | None], Tensor]
    storage: Callable[[Tensor, Values], torch.dtype]
    together: Callable[[Sequence[int], torch.dtype], int]
    work: Callable[[Sequence[int]], int]

    def update(
        self, grad: Tensor, param: Tensor, state: State, hyper: Values, t: Scalar
    ) -> tuple[Tensor, State]:
        """All three parts: the `Rule.update`."""
        values, state = self.before(grad, param, state, hyper, t)
        copied = values.to(self.storage(param, hyper), copy=True)
        return self.whole(copied.unsqueeze(0), hyper, None).squeeze(0).to(grad.dtype), state


@dataclass(frozen=True)
class Slices:
    """An update whose slices along one dimension see each other through their common state alone.

    ``along(state)`` names the dimension; None: there is only one slice. ``begin(state, hyper, t,
    room) -> new_state`` comes before all slices, ``each(grad, scale, state, hyper, t, room) ->
    (direction, new_state)`` is the update of a slice, which sees what those before it made of the
    common state, and ``end`` is as ``begin`` and comes after them. State of the parameter's shape
    is cut with it. ``bases(state)`` are the sizes of the matrices that ``room.reflect`` is for.

    All three are pure if ``room`` is None, and ``scale`` is 1. Else the gradient is ``scale`` times
    what is given, which may lie in the room's first vector. Each of the vectors has at least as
    many entries as a slice; what is computed lies there, and state is written over. Where the
    direction has been added to the room's target, the target's parameter stands for it.
    """

    begin: Callable[[State, Values, Scalar, Room | None], State]
    each: Callable[[Tensor, float, State, Values, Scalar, Room | None], tuple[Tensor, State]]
    end: Callable[[State, Values, Scalar, Room | None], State]
    along: Callable[[State], int | None]
    bases: Callable[[State], Sequence[int]]

    def update(
        self, grad: Tensor, param: Tensor, state: State, hyper: Values, t: Scalar
    ) -> tuple[Tensor, State]:
        """All as one slice: the `Rule.update`."""
        state = {**state, **self.begin(state, hyper, t, None)}
        direction, new = self.each(grad, 1.0, state, hyper, t, None)
        state = {**state, **new}
        return direction, {**state, **self.end(state, hyper, t, None)}
