"""Orthonormal rows from Householder's reflections, in blocks of them (SOAP).

A block is I - V' T V and takes three products (Schreiber, Van Loan, "A storage-efficient WY
representation for products of Householder transformations", 1989). LAPACK does the same, but its
blocks are narrow, and it finds them at a fiftieth of the speed of products: with compiled code for
that, 1536 rows take two thirds of its time.
"""

from __future__ import annotations

import torch
from torch import Tensor

from optimizers.parts import Room
from optimizers.pieces import fit

BLOCK = 128  # rows; more are slower to find, and products with fewer slower to make


def orthonormalize_(rows: Tensor, room: Room) -> None:
    """Make the rows of a square matrix orthonormal, each in the span of it and those before it.

    Of a row in the span of those before it, what is orthogonal to them all is as good as any.
    """
    assert room.reflect is not None
    starts = range(0, len(rows), BLOCK)
    found = []
    for start in starts:
        part = rows[start:, start:]
        own = part[:BLOCK]
        inverses = own.new_empty(len(own))
        room.reflect(own, inverses)
        found.append(triangle(own, inverses))
        apply_(part[BLOCK:], own, found[-1], room)
    for start, middle in zip(reversed(starts), reversed(found), strict=True):
        part, size = rows[start:, start:], len(middle)
        own, rest = part[:size], part[size:]
        rest[:, :size] = 0
        apply_(rest, own, middle.mT, room)
        rows[start : start + size, :start] = 0
        first = own[:, :size].mT @ middle.mT
        for columns in torch.split(own, fit(own.shape, 1, len(room.first)), 1):
            kept = room.first[: columns.numel()].view(columns.shape).copy_(columns)
            torch.mm(first, kept, out=columns).neg_()
        own.diagonal().add_(1)


def triangle(vectors: Tensor, inverses: Tensor) -> Tensor:
    """T of a block, from its vectors and the reciprocals of what each takes itself times."""
    inverse = (vectors @ vectors.mT).triu_(1)
    inverse.diagonal().copy_(inverses)
    eye = torch.eye(len(inverse), dtype=inverse.dtype, device=inverse.device)
    found: Tensor = torch.linalg.solve_triangular(inverse, eye, upper=True)
    return found


def apply_(rows: Tensor, vectors: Tensor, middle: Tensor, room: Room) -> None:
    """Subtract from rows what lies along vectors: rows V' ``middle`` V."""
    shortest = min(len(room.first), len(room.second))
    for some in torch.split(rows, max(1, shortest // len(vectors))):
        shape = len(some), len(vectors)
        inner, outer = (v[: shape[0] * shape[1]].view(shape) for v in (room.first, room.second))
        torch.mm(some, vectors.mT, out=inner)
        some.addmm_(torch.mm(inner, middle, out=outer), vectors, alpha=-1)
