"""Orthonormal rows from Householder's reflections, in blocks of them (SOAP).

A block is I - V' T V and takes three products (Schreiber, Van Loan, "A storage-efficient WY
representation for products of Householder transformations", 1989). LAPACK does the same, but needs
memory of its own as large as the matrix, and finds the reflections of narrow blocks at a fiftieth
of the speed of products: with compiled code for that, 1536 rows take two thirds to three
quarters of its time.
"""

from __future__ import annotations

import torch
from torch import Tensor

from optimizers.parts import Room, front
from optimizers.pieces import fit

BLOCK = 128  # rows; more are slower to find, and products with fewer slower to make
LEAST = 32  # rows of a block, also where LAPACK needs more memory for them than there is


def orthonormalize_(rows: Tensor, size: int, room: Room) -> None:
    """Make the first rows of a square matrix orthonormal, each in the span of those up to it.

    The others are made orthogonal to them, and so is what was in the span of those before it.
    """
    reflect = by_lapack if room.reflect is None or rows.stride(1) != 1 else room.reflect
    block = room.side(min(BLOCK, max(LEAST, len(room.first) // len(rows))))
    starts = range(0, size, block)
    middles = []  # T of each block, where nobody needs the decomposition's R
    for start in starts:
        part = rows[start:size, start:]
        own, count = part[:block], min(block, len(part))
        inverses = rows.new_empty(count)
        reflect(own, inverses, room.first)
        free = rows[start:, start - block :] if start else rows.new_empty(count, count)
        middles.append(free[:count, :count].copy_(triangle(own, inverses, room)))
        apply_(part[block:], own, middles[-1], room)
    rows[size:] = 0
    rows.diagonal()[size:] = 1
    for start, middle in zip(reversed(starts), reversed(middles), strict=True):
        part, count = rows[start:, start:], len(middle)
        own, rest = part[:count], part[count:]
        rest[:, :count] = 0
        apply_(rest, own, middle.mT, room)
        first = own[:, :count].mT @ middle.mT
        rows[start : start + count, :start] = 0
        for columns in torch.split(own, fit(own.shape, 1, len(room.first)), 1):
            kept = front(room.first, columns.shape).copy_(columns)
            torch.mm(first, kept, out=columns).neg_()
        own.diagonal().add_(1)


def by_lapack(rows: Tensor, inverses: Tensor, memory: Tensor) -> None:
    """The reflections of rows, as `Room.reflect`."""
    fits = rows.numel() <= len(memory)
    vectors = (front(memory, rows.shape) if fits else torch.empty_like(rows)).mT
    torch.geqrf(rows.mT, out=(vectors, inverses))
    rows.copy_(vectors.mT).triu_()
    idle = inverses == 0
    rows.diagonal().copy_(~idle)
    inverses.reciprocal_().masked_fill_(idle, 1)


def triangle(vectors: Tensor, inverses: Tensor, room: Room) -> Tensor:
    """T of a block, from its vectors and the reciprocals of what each takes itself times."""
    count = len(vectors)
    inverse, found = (front(memory, (count, count)) for memory in room[:2])
    torch.mm(vectors, vectors.mT, out=inverse).triu_(1).diagonal().copy_(inverses)
    found.zero_().fill_diagonal_(1)
    torch.linalg.solve_triangular(inverse, found.mT, upper=True, out=found.mT)
    return found.mT


def apply_(rows: Tensor, vectors: Tensor, middle: Tensor, room: Room) -> None:
    """Subtract from rows what lies along vectors: rows V' ``middle`` V."""
    for some in torch.split(rows, len(room.first) // len(vectors)):
        shape = len(some), len(vectors)
        inner, outer = (front(memory, shape) for memory in room[:2])
        torch.mm(some, vectors.mT, out=inner)
        some.addmm_(torch.mm(inner, middle, out=outer), vectors, alpha=-1)
