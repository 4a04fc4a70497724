"""Small parameters of one shape, stepped together as one stack of them.

A short vector costs ten calls of a few microseconds and hardly any arithmetic. A rule is a function
of one tensor, so under ``torch.func.vmap`` it is one of a stack, too; where entries do not see each
other not even that is needed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from operator import attrgetter

import torch
from torch import Tensor

from optimizers.core import Rule, Scalar, State, Values
from optimizers.pieces import Piece
from optimizers.sharding import DTYPE

KIND = attrgetter("shape", "dtype", "device")  # in one call, as it is asked of every parameter
MOST = 2**16  # elements of a stack; it is copied, so it has to stay in the cache


def over_stack(rule: Rule) -> Rule:
    """The rule for a stack of parameters."""

    def update(
        grad: Tensor, param: Tensor, state: State, hyper: Values, t: Scalar
    ) -> tuple[Tensor, State]:
        def one(grad: Tensor, param: Tensor, state: State) -> tuple[Tensor, State]:
            return rule.update(grad, param, state, hyper, t)

        return torch.func.vmap(one)(grad, param, state)

    return replace(rule, update=update)


def stacks(pieces: Sequence[Piece]) -> tuple[list[Piece], list[list[Piece]]]:
    """Which parameters are stepped alone, and which together.

    Those of a stack are small, and equal in shape, type, age and clipping. What their states look
    like follows from that.
    """
    alike: dict[tuple[object, ...], list[Piece]] = {}
    for piece, kind in zip(pieces, map(KIND, [piece.param for piece in pieces]), strict=True):
        _, grad, state, compensation, t, scale = piece
        own = id(piece) if isinstance(scale, Tensor) else scale
        key = (kind, grad.dtype, t, own, compensation is None, *state)
        alike.setdefault(key, []).append(piece)
    alone, together = [], []
    for group in alike.values():
        count = max(1, MOST // max(1, group[0].param.numel()))
        for some in (group[start : start + count] for start in range(0, len(group), count)):
            if len(some) == 1:
                alone += some
            else:
                together.append(some)
    return alone, together


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


def spread(stacked: Tensor, into: list[Tensor]) -> None:
    """Write the entries along the first dimension of a tensor into tensors, one by one."""
    if stacked.is_cpu and set(map(DTYPE, into)) == {stacked.dtype}:
        torch.unbind_copy(stacked, out=into)  # faster there
    else:
        torch._foreach_copy_(into, [*stacked.unbind()])


def scatter_state(state: State, pieces: Sequence[Piece]) -> None:
    """Write the state of a stack back to that of its parameters."""
    for key, value in state.items():
        spread(value, [piece.state[key] for piece in pieces])


def scatter(stack: Piece, pieces: Sequence[Piece]) -> None:
    """Write a stack back to its parameters."""
    scatter_state(stack.state, pieces)
    spread(stack.param, [piece.param for piece in pieces])
    if stack.compensation is not None:
        kept = [piece.compensation for piece in pieces if piece.compensation is not None]
        spread(stack.compensation, kept)
