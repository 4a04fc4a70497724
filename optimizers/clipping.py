"""Gradient clipping: pure functions from gradients to norms and scales.

An optimizer multiplies scales into its update and never writes into a gradient.
`clip_by_global_norm` is the whole of it for callers that want clipped gradients (a population of
models under vmap), and `clip_grad_norm_` the in-place form with torch's signature.

Norms accumulate in float32 at least, also for half precision gradients.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import islice
from math import inf
from operator import attrgetter
from typing import Any, TypeAlias, overload

import torch
from torch import Tensor

from optimizers.core import Scalar, where
from optimizers.pieces import LEAST, flat
from optimizers.precision import as_real
from optimizers.sharding import ORDINARY, is_distributed, reduced

Scales: TypeAlias = list[Scalar]
KIND = attrgetter("shape", "__class__", "dtype", "layout", "device")  # in one call


def entries(grad: Tensor) -> Tensor:
    """The gradient's entries that may differ from zero."""
    return grad.coalesce().values() if grad.is_sparse else grad


def part_norm(grad: Tensor, at_least: torch.dtype) -> Tensor:
    """The L2 norm of one gradient; over shards it is pending, and to be completed by `reduced`."""
    grad = entries(grad)
    wide = torch.promote_types(grad.dtype, at_least)
    if grad.is_cpu and grad.dtype == wide and not is_distributed(grad):
        vectors = flat([as_real(grad.resolve_conj())])
        if vectors is not None:  # takes half as long
            return torch.dot(vectors[0], vectors[0]).sqrt()
    norm: Tensor = torch.linalg.vector_norm(grad, dtype=wide)
    return norm


@cache
def are_joined(
    kind: type, dtype: torch.dtype, layout: torch.layout, device: torch.device, wide: torch.dtype
) -> bool:
    """Whether small gradients are stacked for their norms: real ones, summed up in their dtype."""
    ordinary = kind in ORDINARY and layout == torch.strided and device.type != "meta"
    return ordinary and not dtype.is_complex and torch.promote_types(dtype, wide) == dtype


def readable(scalar: Tensor) -> Tensor:
    """A 0-D tensor as it is; zero for one on the meta device, where nothing has a value."""
    return torch.zeros_like(scalar, device="cpu") if scalar.is_meta else scalar


def grad_norms(grads: Iterable[Tensor], at_least: torch.dtype = torch.float32) -> list[Tensor]:
    """The L2 norm of each gradient, 0-D, accumulated in ``at_least`` or wider; 0 on meta.

    Gradients that are sharded over processes count whole, in one collective for all of them.
    """
    return [*map(readable, reduced([part_norm(grad, at_least) for grad in grads]))]


def norm_vectors(
    grads: Sequence[Tensor], at_least: torch.dtype = torch.float32, most: int = 2**16
) -> tuple[list[int], list[Tensor]]:
    """As `grad_norms` in vectors, and which gradient each of all their entries is of.

    Small gradients of one shape are stacked, ``most`` entries at a time.
    """
    alike: dict[tuple[Any, ...], list[int]] = {}
    for index, kind in enumerate(map(KIND, grads)):
        alike.setdefault(kind, []).append(index)
    joined, rest = [], []
    for (shape, *same), indices in alike.items():
        if shape.numel() < LEAST and are_joined(*same, at_least):
            joined.append(indices)
        else:
            rest += indices
    order, vectors = [*rest], [n[None] for n in grad_norms([grads[i] for i in rest], at_least)]
    for indices in joined:
        size = grads[indices[0]].numel()
        count = most // max(1, size)
        for start in range(0, len(indices), count):
            some = indices[start : start + count]
            order += some
            rows = torch.stack([grads[index] for index in some]).reshape(len(some), size)
            vectors.append(torch.linalg.vector_norm(rows, dim=1))
    return order, vectors


def float_norms(
    grads: Sequence[Tensor], at_least: torch.dtype = torch.float32, most: int = 2**16
) -> list[float]:
    """The norms of `norm_vectors` as numbers, in the order of the gradients."""
    order, vectors = norm_vectors(grads, at_least, most)
    found = dict(zip(order, as_floats(vectors), strict=True))
    return [found[index] for index in range(len(grads))]


def as_floats(vectors: Sequence[Tensor]) -> list[float]:
    """The entries of all vectors, waiting once per device and dtype for them."""
    kinds = [(vector.device, vector.dtype) for vector in vectors]
    values = {}
    for kind in dict.fromkeys(kinds):
        alike = [vector for vector, own in zip(vectors, kinds, strict=True) if own == kind]
        values[kind] = iter(torch.cat(alike).tolist())
    lengths = map(len, vectors)
    return [x for kind, n in zip(kinds, lengths, strict=True) for x in islice(values[kind], n)]


def is_finite(grad: Tensor) -> bool:
    """Whether every entry is finite, also those that other processes hold."""
    wrong = torch.isfinite(entries(grad)).logical_not().to(torch.float32)
    return not float(grad_norms([wrong])[0])


def global_norm(grads: Iterable[Tensor]) -> Tensor:
    """The L2 norm over all gradients together, 0-D, on the device of one of them."""
    _, vectors = norm_vectors([*grads])
    if not vectors:
        return torch.tensor(0.0)
    device = vectors[0].device
    wide = torch.float64 if device.type != "mps" else torch.float32
    total: Tensor = torch.linalg.vector_norm(torch.cat([v.to(device, wide) for v in vectors]))
    return total


@overload
def norm_scale(norm: float, limit: float) -> float: ...
@overload
def norm_scale(norm: Scalar, limit: Scalar) -> Scalar: ...
def norm_scale(norm: Scalar, limit: Scalar) -> Scalar:
    """``min(1, limit / norm)``, exactly 1 inside the limit: small gradients stay bit-identical."""
    if isinstance(norm, float):  # the way of every step
        return limit / norm if norm > limit else 1.0
    over = norm > limit
    return where(over, limit / where(over, norm, 1.0), 1.0)


def unit_norms(tensor: Tensor) -> Tensor:
    """Norms of the units of a weight, broadcastable to it.

    A unit is an output row: all dimensions but the first are reduced; a vector or scalar is one
    unit.
    """
    dims = tuple(range(1, tensor.dim())) if tensor.dim() > 1 else None
    norms: Tensor = torch.linalg.vector_norm(tensor, dim=dims, keepdim=True)
    return norms


def agc_scale(grad: Tensor, param: Tensor, limit: Scalar, eps: float = 1e-3) -> Tensor:
    """Adaptive clipping: each unit's gradient norm at most ``limit · max(‖param‖, eps)``.

    Brock et al., "High-Performance Large-Scale Image Recognition Without Normalization", 2021.
    """
    largest = limit * unit_norms(param).clamp(min=eps)
    norms = unit_norms(grad)
    return torch.where(norms > largest, largest / norms, torch.ones_like(norms))


def clip_by_global_norm(
    grads: Mapping[str, Tensor], limit: Scalar
) -> tuple[dict[str, Tensor], Tensor]:
    """Scale all gradients together to a norm of at most ``limit``; returns them and the norm.

    Pure and free of data-dependent branches, so that it runs per model under vmap.
    """
    squares = [(grad * grad).sum(dtype=torch.float64) for grad in grads.values()]
    norm = torch.stack(squares).sum().sqrt()
    scale = norm_scale(norm, limit)
    return {name: grad * scale for name, grad in grads.items()}, norm


def clip_grad_norm_(
    parameters: Tensor | Iterable[Tensor], max_norm: float, error_if_nonfinite: bool = False
) -> Tensor:
    """Scale gradients in place to an L2 norm of at most ``max_norm``; returns the norm before.

    Gradients with a non-finite norm are left as they are, so that the optimizer's own check can
    skip the step and name the parameter. Raises RuntimeError for them if ``error_if_nonfinite``.
    """
    params = [parameters] if isinstance(parameters, Tensor) else list(parameters)
    grads = [param.grad for param in params if param.grad is not None]
    norm = global_norm(grads)
    if not torch.isfinite(norm):
        if error_if_nonfinite:
            raise RuntimeError(f"the gradients' norm is {norm.item()}")
        return norm
    scale = norm_scale(norm.item(), max_norm)
    for grad in grads:
        grad.mul_(scale)
    return norm


APART = ("clip_per_layer", "clip_agc")  # the kinds with a scale for each gradient, or its units
SCALINGS = ("clip_norm", *APART)  # the kinds that multiply gradients


@dataclass(frozen=True)
class Clip:
    """What happens to gradients before the rule; ``kind`` is the optimizer's argument, or None."""

    kind: str | None = None
    limit: float = 0.0

    @property
    def value(self) -> float | None:
        """The bound on each entry, if that is the kind."""
        return self.limit if self.kind == "clip_value" else None

    @property
    def norm(self) -> float:
        """The bound on the norm over all gradients; infinity for the other kinds."""
        return self.limit if self.kind == "clip_norm" else inf

    def scale(self, total: float) -> float:
        """What multiplies all gradients alike; ``total`` is their norm."""
        return norm_scale(total, self.norm)

    def scales(
        self,
        grads: Sequence[Tensor],
        params: Sequence[Tensor],
        norms: Sequence[float],
        total: float,
    ) -> Scales:
        """One factor per gradient: a number, or a tensor that broadcasts to the gradient."""
        if self.kind == "clip_per_layer":
            return [norm_scale(norm, self.limit) for norm in norms]
        if self.kind == "clip_agc":
            return [agc_scale(g, p, self.limit) for g, p in zip(grads, params, strict=True)]
        return [self.scale(total)] * len(grads)


def parse(owner: str, **limits: float | None) -> Clip:
    """The one kind of clipping that was asked for.

    Raises ValueError for a limit that is not positive or for more than one kind.
    """
    given = {kind: limit for kind, limit in limits.items() if limit is not None}
    for kind, limit in given.items():
        if not limit > 0:
            raise ValueError(f"{owner}: {kind}={limit!r} is not valid; allowed: value > 0, or None")
    if len(given) > 1:
        raise ValueError(f"{owner}: {', '.join(given)} given together; allowed: one of them")
    return next((Clip(kind, float(limit)) for kind, limit in given.items()), Clip())
