"""Eigenbases of the Gram matrices of a parameter's dimensions, and what is kept in them (SOAP).

A state holds ``gram_0, basis_0, gram_1, ...`` for those dimensions that have them, and ``exp_avg``
and ``exp_avg_sq`` in the bases. Rows of a basis are eigenvectors, in which form a QR decomposition
needs no copy of it.

The functions whose name ends in ``_`` write over what they are given, and make all that they need
in a ``room``; the others are pure, and run under ``torch.func.vmap``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from optimizers.core import Scalar, State
from optimizers.parts import Room, Target, front
from optimizers.pieces import fit
from optimizers.rules.reflections import orthonormalize_

STRIP = 192  # rows of a product of which only the part right of the diagonal is needed


def dims_of(state: State) -> Iterator[int]:
    """The dimensions that have a basis."""
    yield from (int(name.removeprefix("gram_")) for name in state if name.startswith("gram_"))


def sizes_of(state: State) -> list[int]:
    """Those of all bases."""
    return [len(state[f"basis_{dim}"]) for dim in dims_of(state)]


def rotate(
    tensor: Tensor,
    state: State,
    scale: Scalar = 1.0,
    *,
    back: bool = False,
    room: Room | None = None,
    target: Target | None = None,
) -> Tensor:
    """A tensor in the bases of its dimensions, or back from them.

    In a room, where the tensor may lie, it is made in one vector and the other by turns, and
    ``scale`` times as large. The last product is added to a target, if it comes in that layout;
    the result is then the target's parameter.
    """
    based = [dim for dim in range(tensor.dim()) if f"basis_{dim}" in state]
    if not based:
        return (
            tensor
            if room is None
            else torch.mul(tensor, scale, out=front(room.first, tensor.shape))
        )
    for dim in reversed(range(tensor.dim())):
        # the last dimension comes to the front; BLAS likes to have the long one on the left
        if dim not in based:
            tensor = tensor.movedim(-1, 0)
            continue
        basis = state[f"basis_{dim}"].mT if back else state[f"basis_{dim}"]
        columns, rest = tensor.flatten(0, -2).mT, tensor.shape[:-1]
        memory = None if room is None else other(room, tensor)
        if target is not None and dim == based[0] and dim in (0, tensor.dim() - 1):
            left, right = (columns.mT, basis.mT) if dim else (basis, columns)
            param = target.param.view(left.shape[0], right.shape[1])
            param.addmm_(left, right, beta=target.keep, alpha=float(scale) * target.size)
            return target.param
        if dim and dim == based[0]:  # others are moved only, so that nothing is in the end
            product = times(columns.mT, basis.mT, scale, memory)
            tensor = product.view(*rest, len(basis)).movedim(-1, 0)
        else:
            tensor = times(basis, columns, scale, memory).view(len(basis), *rest)
        scale = 1.0
    return tensor


def times(left: Tensor, right: Tensor, scale: Scalar, memory: Tensor | None) -> Tensor:
    """The product of matrices, in memory also times a number."""
    if memory is None:
        return left @ right
    out = front(memory, (left.shape[0], right.shape[1]))
    return torch.addmm(out, left, right, beta=0, alpha=float(scale), out=out)


def other(room: Room, tensor: Tensor) -> Tensor:
    """The one of two vectors that a tensor does not lie in."""
    return room.second if tensor.data_ptr() == room.first.data_ptr() else room.first


def grams(grad: Tensor, state: State, weight: Scalar) -> State:
    """The Gram matrices with those of a gradient, times a weight, added to them."""
    new: State = {}
    for dim in dims_of(state):
        rows, old = grad.movedim(dim, 0).flatten(1), state[f"gram_{dim}"]
        new[f"gram_{dim}"] = old + weight * (rows @ rows.mT)
    return new


def add_grams_(grad: Tensor, state: State, weight: Scalar, room: Room, keep: Scalar = 1.0) -> None:
    """As `grams`, with ``keep`` times the old ones, in half the operations: nothing changes left of
    the diagonal (`complete_`).
    """
    factors = {"beta": float(keep), "alpha": float(weight)}
    for dim in dims_of(state):
        gram, turned = state[f"gram_{dim}"], grad.movedim(dim, 0)
        if dim and grad.dim() > 2:
            turned = front(other(room, grad), turned.shape).copy_(turned)
        rows = turned.flatten(1)
        for start in range(0, len(gram), STRIP):
            strip, rest = slice(start, start + STRIP), slice(start, None)
            gram[strip, rest].addmm_(rows[strip], rows[rest].mT, **factors)


def complete(gram: Tensor) -> Tensor:
    """A Gram matrix whose entries left of the diagonal are those right of it."""
    return gram.triu() + gram.triu(1).mT


def complete_(gram: Tensor, room: Room) -> Tensor:
    """As `complete`."""
    side = room.side(STRIP)
    for start in range(0, len(gram), side):
        strip, rest = slice(start, start + side), slice(start + side, None)
        square = gram[strip, strip]
        above = torch.triu(square, 1, out=front(room.first, square.shape))
        square.triu_().add_(above.mT)
        gram[rest, strip].copy_(gram[strip, rest].mT)
    return gram


def is_long(rows: Tensor) -> bool:
    """Whether rows are so many, and so short, that few of their Gram matrix's eigenvalues are not
    zero, and the Gram matrix of columns is the better way to their eigenvectors.
    """
    return 2 * rows.shape[1] <= len(rows)


def first(state: State) -> State:
    """The eigenvectors of the Gram matrices, largest eigenvalue first.

    The gradient lies in the mean's place, which becomes zero. Of a dimension that is much longer
    than all others together (`is_long`), they follow from those of the others, and what completes
    them to a basis is as good as any. 1536 rows of 384 take a third of the time, and of LAPACK's
    memory a sixteenth.
    """
    grad = state["exp_avg"]
    new = {"exp_avg": torch.zeros_like(grad)}
    for dim in dims_of(state):
        rows = grad.movedim(dim, 0).flatten(1)
        gram = rows.mT @ rows if is_long(rows) else complete(state[f"gram_{dim}"])
        basis = torch.linalg.eigh(gram).eigenvectors.flip(-1).mT
        if is_long(rows):
            vectors, scales = torch.geqrf((basis @ rows.mT).mT)
            others = vectors.new_zeros(len(rows), len(rows) - rows.shape[1])
            whole = torch.cat([vectors, others], dim=1)
            basis = torch.linalg.householder_product(whole, scales).mT
        new[f"basis_{dim}"] = basis
    return new


def first_(state: State, room: Room) -> None:
    """As `first`."""
    grad = state["exp_avg"]
    for dim in dims_of(state):
        gram, basis = state[f"gram_{dim}"], state[f"basis_{dim}"]
        rows = grad.movedim(dim, 0).flatten(1)
        if is_long(rows):
            span_(basis, rows, room)
        else:
            eigenvectors_(complete_(gram, room), basis, room)
    grad.zero_()


def eigenvectors_(gram: Tensor, out: Tensor, room: Room) -> None:
    """Those of a Gram matrix, as rows, largest eigenvalue first."""
    torch.linalg.eigh(gram, out=(gram.new_empty(len(gram)), out.mT))
    order = torch.arange(len(gram) - 1, -1, -1, device=gram.device)
    reorder_(out, 0, order, 1, room)


def span_(basis: Tensor, rows: Tensor, room: Room) -> None:
    """A basis that begins with the eigenvectors of the Gram matrix of many short rows."""
    size = rows.shape[1]
    small, vectors = (front(memory, (size, size)) for memory in room[:2])
    torch.mm(rows.mT, rows, out=small)
    eigenvectors_(small, vectors, Room(small.flatten(), small.flatten()))
    torch.mm(vectors, rows.mT, out=basis[:size])
    orthonormalize_(basis, size, room)


def refreshed(state: State) -> State:
    """One power iteration and QR for each basis; the moments follow."""
    new = {key: state[key] for key in ("exp_avg", "exp_avg_sq")}
    for dim in dims_of(state):
        basis = state[f"basis_{dim}"]
        power = basis @ complete(state[f"gram_{dim}"])
        order = torch.argsort((basis * power).sum(1), descending=True)
        new["exp_avg_sq"] = new["exp_avg_sq"].index_select(dim, order)
        decomposed = torch.geqrf(power.index_select(0, order).mT)
        new[f"basis_{dim}"] = torch.linalg.householder_product(*decomposed).mT
    new["exp_avg"] = rotate(rotate(state["exp_avg"], state, back=True), new)
    return new


def refresh_(state: State, along: int | None, room: Room) -> None:
    """As `refreshed`; a dimension without a basis may tell ``along`` what to cut moments."""
    turn_(state, along, room, back=True)
    for dim in dims_of(state):
        basis = state[f"basis_{dim}"]
        sizes = power_(basis, complete_(state[f"gram_{dim}"], room), room)
        order = torch.argsort(sizes, descending=True)
        reorder_(state["exp_avg_sq"], dim, order, int(not dim) if along is None else along, room)
        reorder_(basis, 0, order, 1, room)
        orthonormalize_(basis, len(basis), room)
    turn_(state, along, room)


def turn_(state: State, along: int | None, room: Room, *, back: bool = False) -> None:
    """Move the mean of the gradients into the bases, or back from them."""
    mean = state["exp_avg"]
    for part in [mean] if along is None else fitting(mean, along, room):
        part.copy_(rotate(part, state, back=back, room=room))


def power_(basis: Tensor, gram: Tensor, room: Room) -> Tensor:
    """Multiply the rows of a basis by a Gram matrix; returns what it makes of their lengths."""
    sizes = []
    for rows in fitting(basis, 0, room):
        power, product = (front(memory, rows.shape) for memory in room[:2])
        torch.mm(rows, gram, out=power)
        sizes.append(torch.mul(rows, power, out=product).sum(1))
        rows.copy_(power)
    return torch.cat(sizes)


def reorder_(tensor: Tensor, dim: int, order: Tensor, along: int, room: Room) -> None:
    """Bring a dimension into an order, slice by slice along another."""
    for part in fitting(tensor, along, room):
        part.copy_(torch.index_select(part, dim, order, out=front(room.first, part.shape)))


def fitting(tensor: Tensor, along: int, room: Room) -> Sequence[Tensor]:
    """Slices along a dimension that fit the room."""
    return torch.split(tensor, fit(tensor.shape, along, len(room.first)), along)
