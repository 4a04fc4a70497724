"""Parameters in pieces: views of some entries, or rows, and of what belongs to them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import ceil, prod
from typing import NamedTuple

import torch
from torch import Tensor

from optimizers.core import Scalar, State

CHUNK = 2**17  # elements a thread; smaller pieces pay for calls, larger ones with memory
LEAST = 2**15  # elements that are worth cutting or recording


class Piece(NamedTuple):
    """A parameter, or a part of one, with what belongs to it; ``scale`` multiplies the gradient.

    ``t`` is how many updates the state will have absorbed after this one.
    """

    param: Tensor
    grad: Tensor
    state: State
    compensation: Tensor | None
    t: float
    scale: Scalar


def chunk() -> int:
    """Elements of a piece, of which every thread gets a share."""
    return CHUNK * torch.get_num_threads()


def pair_up(tensors: Sequence[Tensor]) -> bool:
    """Whether entries that belong together are at the same places in memory without holes."""
    shape, stride = tensors[0].shape, tensors[0].stride()
    if any(t.shape != shape or t.stride() != stride for t in tensors):
        return False
    return sum((n - 1) * s for n, s in zip(shape, stride, strict=True)) + 1 == shape.numel()


def flat(tensors: Sequence[Tensor]) -> list[Tensor] | None:
    """1-D views that pair up entries, or None when the layouts differ or have holes."""
    if not pair_up(tensors):
        return None
    return [tensor.as_strided((tensor.numel(),), (1,)) for tensor in tensors]


def cut(tensors: Sequence[Tensor]) -> list[list[Tensor]] | None:
    """As `flat`, in pieces: the same entries of every tensor together."""
    if not pair_up(tensors):
        return None
    entries, most = tensors[0].numel(), chunk()
    offsets = [tensor.storage_offset() for tensor in tensors]
    return [
        [
            tensor.as_strided((min(most, entries - begin),), (1,), offset + begin)
            for tensor, offset in zip(tensors, offsets, strict=True)
        ]
        for begin in range(0, entries, most)
    ]


def chunks(piece: Piece) -> Iterator[Piece]:
    """Views of one parameter and what belongs to it, in pieces where the layout allows it."""
    param = piece.param
    whole = {key: value for key, value in piece.state.items() if value.shape == param.shape}
    extra = [] if piece.compensation is None else [piece.compensation]
    parts = None
    if param.numel() >= LEAST and not isinstance(piece.scale, Tensor):
        parts = cut([param, piece.grad, *extra, *whole.values()])
    if parts is None:
        yield piece
        return
    for part, grad, *rest in parts:
        state = {**piece.state, **dict(zip(whole, rest[len(extra) :], strict=True))}
        yield Piece(part, grad, state, rest[0] if extra else None, piece.t, piece.scale)


def fit(shape: Sequence[int], dim: int, entries: int) -> int:
    """How much of a dimension makes slices of equal size with at most so many entries, or one."""
    most = max(1, entries * shape[dim] // prod(shape))
    return ceil(shape[dim] / ceil(shape[dim] / most))


def slices_of(piece: Piece, dim: int, size: int) -> Iterator[Piece]:
    """Views of so much of a dimension each, and of the state that has it, too."""
    shape = piece.param.shape
    along = {
        key: value
        for key, value in piece.state.items()
        if value.dim() == len(shape) and value.shape[dim] == shape[dim]
    }
    extra = [] if piece.compensation is None else [piece.compensation]
    cuts = (torch.split(t, size, dim) for t in (piece.param, piece.grad, *extra, *along.values()))
    for part, grad, *rest in zip(*cuts, strict=True):
        state = {**piece.state, **dict(zip(along, rest[len(extra) :], strict=True))}
        yield Piece(part, grad, state, rest[0] if extra else None, piece.t, piece.scale)
