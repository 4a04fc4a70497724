"""Parameters that are spread over processes (FSDP2, tensor parallelism): DTensors.

State is allocated as DTensors, so that checkpoints see its placement; rules run on each process's
own part, which is right for entries that do not see each other. Norms are over all parts.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from operator import attrgetter
from typing import TYPE_CHECKING, TypeGuard, cast

import torch
from torch import Tensor

from optimizers.core import Rule, Scalar
from optimizers.precision import as_real

if TYPE_CHECKING:  # importing it takes as long as all of torch
    from torch.distributed.tensor import DTensor


ORDINARY = (Tensor, torch.nn.Parameter)
DTYPE, LAYOUT = attrgetter("dtype"), attrgetter("layout")


def is_distributed(tensor: object) -> TypeGuard[DTensor]:
    """Whether a tensor says where on a mesh of processes its entries are."""
    if type(tensor) in ORDINARY:  # asking a tensor for what it lacks is slow
        return False
    return hasattr(tensor, "device_mesh") and hasattr(tensor, "placements")


def is_sharded(tensor: Tensor) -> bool:
    """Whether no process holds the whole tensor; the same answer on all of them."""
    return is_distributed(tensor) and any(
        size > 1 and not placement.is_replicate()
        for size, placement in zip(tensor.device_mesh.shape, tensor.placements, strict=True)
    )


def check_whole(rule: Rule, named: Iterable[tuple[str, Tensor]]) -> None:
    """Raise TypeError for a sharded parameter, unless the entries do not see each other."""
    for name, param in named:
        if rule.scope != "element" and is_sharded(param):
            raise TypeError(
                f"{rule.class_name}: {name} is sharded over processes, and this rule needs whole "
                "tensors; allowed: an elementwise rule such as AdamW or Lion, or replicas (DDP)"
            )


def local(tensor: Tensor) -> Tensor:
    """This process's own part, as a view; ordinary tensors as they are."""
    return tensor.to_local() if is_distributed(tensor) else tensor


def local_scale(scale: Scalar) -> Scalar:
    """What multiplies this process's part of a gradient."""
    return local(scale) if isinstance(scale, Tensor) else scale


def plain(tensor: Tensor) -> Tensor:
    """A view as rules take it: this process's part, complex entries as pairs of reals."""
    if type(tensor) in ORDINARY and not tensor.is_complex():  # this is asked of every tensor
        return tensor
    return as_real(local(tensor))


def are_plain(tensors: Sequence[Tensor]) -> bool:
    """Whether rules and norms take all of these as they are: dense, real, and here.

    What has to be asked of thousands is asked in few calls.
    """
    return (
        set(map(type, tensors)) <= set(ORDINARY)
        and not any(dtype.is_complex for dtype in set(map(DTYPE, tensors)))
        and set(map(LAYOUT, tensors)) <= {torch.strided}
    )


def placed_like(grad: Tensor, param: Tensor) -> Tensor:
    """A gradient placed as its parameter is: what is pending, sums or conjugation, is done."""
    if type(grad) in ORDINARY and not grad.is_conj():
        return grad
    if grad.is_conj():  # as that of ``param.conj() * x``, and has no view as reals
        grad = grad.resolve_conj()
    if not (is_distributed(grad) and is_distributed(param)) or grad.placements == param.placements:
        return grad
    return grad.redistribute(param.device_mesh, param.placements)


def reduced(scalars: Sequence[Tensor]) -> list[Tensor]:
    """0-D tensors with what is pending between processes done, in one collective per kind."""
    kinds: dict[object, list[int]] = {}
    for index, scalar in enumerate(scalars):
        if is_distributed(scalar):
            kind = (scalar.device_mesh, scalar.placements, scalar.dtype)
            kinds.setdefault(kind, []).append(index)
    done = list(scalars)
    for indices in kinds.values():
        together = cast("DTensor", torch.stack([scalars[index] for index in indices]))
        for index, value in zip(indices, together.full_tensor().unbind(), strict=True):
            done[index] = value
    return done
