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

from optimizers.batch import Batch
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


def stacks(batch: Batch, indices: Sequence[int]) -> tuple[list[int], list[list[int]]]:
    """Which of some parameters are stepped alone, and which together.

    Those of a stack are small, and equal in shape, type, age and clipping. What their states look
    like follows from that.
    """
    alike: dict[tuple[object, ...], list[int]] = {}
    for index, kind in zip(indices, map(KIND, [batch.params[i] for i in indices]), strict=True):
        scale = batch.scales[index]
        own = None if isinstance(scale, Tensor) else scale
        whole = batch.compensations[index] is None
        key = (kind, batch.grads[index].dtype, batch.steps[index], own, whole, *batch.states[index])
        alike.setdefault(key, []).append(index)
    alone, together = [], []
    for group in alike.values():
        clipped_apart = isinstance(batch.scales[group[0]], Tensor)  # by units of their own
        most = 1 if clipped_apart else MOST // max(1, batch.params[group[0]].numel())
        count = max(1, most)
        for some in (group[start : start + count] for start in range(0, len(group), count)):
            if len(some) == 1:
                alone += some
            else:
                together.append(some)
    return alone, together


def gather(batch: Batch, indices: Sequence[int]) -> Piece:
    """A stack of parameters as one; a copy."""
    first, states = batch.piece(indices[0]), [batch.states[index] for index in indices]
    return first._replace(
        param=torch.stack([batch.params[index] for index in indices]),
        grad=torch.stack([batch.grads[index] for index in indices]),
        state={key: torch.stack([state[key] for state in states]) for key in first.state},
        compensation=None if first.compensation is None else torch.stack(kept(batch, indices)),
    )


def kept(batch: Batch, indices: Sequence[int]) -> list[Tensor]:
    """What parameters could not hold."""
    found = (batch.compensations[index] for index in indices)
    return [compensation for compensation in found if compensation is not None]


def spread(stacked: Tensor, into: list[Tensor]) -> None:
    """Write the entries along the first dimension of a tensor into tensors, one by one."""
    if stacked.is_cpu and set(map(DTYPE, into)) == {stacked.dtype}:
        torch.unbind_copy(stacked, out=into)  # faster there
    else:
        torch._foreach_copy_(into, [*stacked.unbind()])


def scatter_state(batch: Batch, state: State, indices: Sequence[int]) -> None:
    """Write the state of a stack back to that of its parameters."""
    for key, value in state.items():
        spread(value, [batch.states[index][key] for index in indices])


def scatter(batch: Batch, stack: Piece, indices: Sequence[int]) -> None:
    """Write a stack back to its parameters."""
    scatter_state(batch, stack.state, indices)
    spread(stack.param, [batch.params[index] for index in indices])
    if stack.compensation is not None:
        spread(stack.compensation, kept(batch, indices))
