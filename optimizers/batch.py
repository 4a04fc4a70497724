"""The parameters of one group, and the step of a piece of one with ordinary operations."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from optimizers.core import DecayMode, Rule, Scalar, State, Values, add_scaled, advance
from optimizers.parts import Reflect
from optimizers.pieces import Piece
from optimizers.precision import compute_dtype, narrow, widen


@dataclass
class Batch:
    """The parameters of one group that have a gradient, and all that their step needs.

    ``scales`` multiply the gradients (clipping), ``bound`` limits each entry; ``steps`` are the
    updates each state will have absorbed after this one. ``compensations`` hold what half
    precision parameters could not, ``stochastic`` rounds them at random. Parameters and gradients
    are real; a gradient that is still sparse has its rows updated alone. ``zeros`` says which of
    the rule's hyperparameters are zero. ``tables`` hold further parameters of the group, which
    compiled kernels step; ``reflect`` is as in `parts.Room`.
    """

    rule: Rule
    mode: DecayMode
    hyper: Values
    params: list[Tensor]
    grads: list[Tensor]
    states: list[State] = field(default_factory=list)
    compensations: list[Tensor | None] = field(default_factory=list)
    steps: list[float] = field(default_factory=list)
    scales: list[Scalar] = field(default_factory=list)
    bound: float | None = None
    maximize: bool = False
    stochastic: bool = False
    zeros: tuple[bool, ...] = ()
    tables: Sequence[Any] = ()  # optimizers.kernels.table.Table, which comes after this
    reflect: Reflect | None = None

    def piece(self, index: int) -> Piece:
        """One of the parameters."""
        return Piece(
            self.params[index], self.grads[index], self.states[index], self.compensations[index],
            self.steps[index], self.scales[index],
        )  # fmt: skip

    def pieces(self) -> Iterator[Piece]:
        """The parameters one by one."""
        return map(self.piece, range(len(self.params)))


def usable(grad: Tensor, rule: Rule, mode: DecayMode, hyper: Values, whole: bool) -> Tensor:
    """A gradient as engines take it: dense, or sparse where all other rows stay as they are.

    ``whole`` asks for a dense one in any case. Raises TypeError for rules without a sparse form.
    """
    if grad.layout == torch.strided:
        return grad
    if rule.sparse is None or not grad.is_sparse:
        raise TypeError(f"{rule.class_name} does not support gradients of layout {grad.layout}")
    rows_alone = mode == "none" and rule.sparse(hyper) and not grad.is_complex()
    return grad.coalesce() if rows_alone and not whole else grad.to_dense()


def prepare(batch: Batch, piece: Piece) -> Tensor:
    """The gradient that the rule sees: widened, clipped, and turned for maximisation."""
    grad = piece.grad.to(compute_dtype(piece.param.dtype))
    if batch.bound is not None:
        grad = grad.clamp(-batch.bound, batch.bound)
    if isinstance(piece.scale, Tensor) or piece.scale != 1.0:
        grad = grad * piece.scale
    return -grad if batch.maximize else grad


def seen(batch: Batch, piece: Piece) -> tuple[Tensor, Tensor]:
    """The gradient and the parameter that the parts of a rule see: `advance` up to the rule."""
    grad, param = prepare(batch, piece), widen(piece.param, piece.compensation)
    if batch.mode == "l2":
        grad = add_scaled(grad, param, batch.hyper.weight_decay)
    return grad, param


def stepped(batch: Batch, rule: Rule, part: Piece) -> tuple[Tensor, State]:
    """The new value of a parameter, not narrowed yet, and the new state."""
    grad, param = prepare(batch, part), widen(part.param, part.compensation)
    return advance(rule, batch.mode, grad, param, part.state, batch.hyper, part.t)


def step_part(batch: Batch, rule: Rule, part: Piece, noise: torch.Generator | None = None) -> State:
    """Step what fits the cache; returns the new state."""
    new, state = stepped(batch, rule, part)
    narrow(part.param, new, part.compensation, noise)
    return state


def store(state: State, new: State) -> None:
    """Write a rule's new state into the tensors that hold it."""
    for key, value in new.items():
        state[key].copy_(value)


def store_part(piece: Piece, part: Piece, new: State) -> State:
    """Write a part's new state; returns what all parts share, which first have to see the old."""
    shared: State = {}
    for key, value in new.items():
        if part.state[key] is not piece.state[key]:
            part.state[key].copy_(value)
        else:
            shared[key] = value
    return shared
