"""Torch operations in the form in which eager steps repeat them: writing into ``out``.

Sums over the entries of a piece end in a number (a 0-D tensor); `COMBINED` makes that of a whole
tensor from those of its pieces.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor


def copied(values: Tensor, *, out: Tensor, memory_format: object = None) -> Tensor:
    """The same values in other memory, which torch's own ``clone.out`` copies twice."""
    return out.copy_(values)


@cache
def writing(func: Any) -> Any:
    """The form of a torch operation that writes into ``out``; None without one.

    Those that Python has are half as slow to call as those it does not.
    """
    if func is torch.ops.aten.clone.default:
        return copied
    name = func._overloadname
    out = "out" if name in ("Tensor", "default") else f"{name}_out"
    found = getattr(func.overloadpacket, out, None)
    if found is None or torch.Tag.generated in found.tags:
        return found
    return getattr(torch, func.overloadpacket.__name__, found)


@cache
def one(dtype: torch.dtype, device: torch.device) -> Tensor:
    """A vector of a single one."""
    return torch.ones(1, dtype=dtype, device=device)


def blend(first: Tensor, second: Tensor, a: float, b: float, *, out: Tensor) -> Tensor:
    """``a·first + b·second`` of vectors, in one pass, for which torch has no operation of its own.

    Neither weight may be zero: what is multiplied by a zero ``beta`` is not looked at, NaN or not.
    """
    if out is second:  # a result may take the place of the matrix, not that of a vector
        first, second, a, b = second, first, b, a
    unit = one(second.dtype, second.device)
    torch.addr(first.unsqueeze(0), unit, second, beta=a, alpha=b, out=out.unsqueeze(0))
    return out


def norm_of(values: Tensor, factor: float, *, out: Tensor) -> Tensor:
    """``factor·‖values‖`` of a vector; a dot product takes half the time of torch's norm."""
    norm = torch.dot(values, values, out=out).sqrt_()
    return norm if factor == 1 else norm.mul_(factor)


def sum_of(values: Tensor, factor: float, *, out: Tensor) -> Tensor:
    """``factor·Σ values`` of a vector."""
    total = torch.sum(values, 0, out=out)
    return total if factor == 1 else total.mul_(factor)


def dot_of(first: Tensor, second: Tensor, factor: float, *, out: Tensor) -> Tensor:
    """``factor·Σ first·second`` of vectors."""
    total = torch.dot(first, second, out=out)
    return total if factor == 1 else total.mul_(factor)


def length(parts: Tensor) -> Tensor:
    """The norm of everything from those of its pieces."""
    norm: Tensor = torch.linalg.vector_norm(parts)
    return norm


def total(parts: Tensor) -> Tensor:
    """The sum over everything from those over its pieces."""
    return parts.sum()


SUMS: Mapping[Any, Callable[..., Tensor]] = MappingProxyType(
    {torch.ops.aten.linalg_vector_norm.default: norm_of, torch.ops.aten.sum.default: sum_of}
)
COMBINED: Mapping[Any, Callable[[Tensor], Tensor]] = MappingProxyType(
    {norm_of: length, sum_of: total, dot_of: total}
)
