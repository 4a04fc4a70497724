"""Small parameters of one shape, stepped together as one stack of them.

A short vector costs ten calls of a few microseconds and hardly any arithmetic. A rule is a function
of one tensor, so under ``torch.func.vmap`` it is one of a stack, too; where entries do not see each
other not even that is needed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from operator import attrgetter

import torch
from torch import Tensor

from optimizers.core import Rule, Scalar, State, Values
from optimizers.pieces import Piece

SHAPE = attrgetter("shape")
MOST = 2**17  # elements of a stack; it is copied, so it has to stay in the cache


def over_stack(rule: Rule, state: State) -> Rule:
    """The rule for a stack of parameters, whose state this is."""
    if rule.entrywise and all(value.dim() > 1 for value in state.values()):
        return rule

    def update(
        grad: Tensor, param: Tensor, state: State, hyper: Values, t: Scalar
    ) -> tuple[Tensor, State]:
        def one(grad: Tensor, param: Tensor, state: State) -> tuple[Tensor, State]:
            return rule.update(grad, param, state, hyper, t)

        return torch.func.vmap(one)(grad, param, state)

    return replace(rule, update=update)


def stacks(pieces: Iterable[Piece]) -> Iterator[list[Piece]]:
    """Which parameters go together: equal in shape, type, age and clipping, and small enough."""
    alike: dict[object, list[Piece]] = {}
    for piece in pieces:
        param, grad, state, compensation, t, scale = piece
        size = param.numel()
        if isinstance(scale, Tensor) or 2 * size > MOST:
            yield [piece]
            continue
        key = (
            param.shape, param.dtype, param.device, grad.dtype, t, scale, compensation is None,
            *state, *map(SHAPE, state.values()),
        )  # fmt: skip
        group = alike.setdefault(key, [])
        group.append(piece)
        if (len(group) + 1) * size > MOST:
            yield alike.pop(key)
    yield from alike.values()


def gather(pieces: Sequence[Piece]) -> Piece:
    """A stack of parameters as one; a copy."""
    first = pieces[0]
    return first._replace(
        param=torch.stack([piece.param for piece in pieces]),
        grad=torch.stack([piece.grad for piece in pieces]),
        state={key: torch.stack([piece.state[key] for piece in pieces]) for key in first.state},
        compensation=None if first.compensation is None else torch.stack(
            [piece.compensation for piece in pieces if piece.compensation is not None]
        ),
    )  # fmt: skip


def scatter_state(state: State, pieces: Sequence[Piece]) -> None:
    """Write the state of a stack back to that of its parameters."""
    into = [piece.state[key] for key in state for piece in pieces]
    if into:
        torch._foreach_copy_(into, [each for value in state.values() for each in value.unbind()])


def scatter(stack: Piece, pieces: Sequence[Piece]) -> None:
    """Write a stack back to its parameters."""
    scatter_state(stack.state, pieces)
    into = [piece.param for piece in pieces]
    values = list(stack.param.unbind())
    if stack.compensation is not None:
        into += [piece.compensation for piece in pieces if piece.compensation is not None]
        values += stack.compensation.unbind()
    torch._foreach_copy_(into, values)
