"""Half precision parameters: arithmetic in float32, and what becomes of the part that is lost.

A step of 1e-4 on a bfloat16 weight near 1 is smaller than half the distance to the next weight,
so plain rounding never moves it. Two remedies: "kahan" keeps the lost part in a second tensor of
16 bits an entry and adds it back before the next step; "stochastic" rounds up or down at random
with the odds that make the expected result exact, and needs no memory.

Kahan's compensation holds the lost part in the parameter's own format, of 8 bits in bfloat16:
steps that are small beside the lost part are lost in turn (at a learning rate of 1e-4 Adagrad
moves weights near 1 by 60 %). Here it is an integer instead: how many float32 numbers the wide
value lies away from the parameter. For bfloat16 these are the lower half of the float32 value, so
that nothing is lost; for float16 in its normal range, too.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

LOW_PRECISION = ("kahan", "stochastic", "none")
HALF = (torch.float16, torch.bfloat16)
FLOAT32_BITS = 24  # of the significand
MAGNITUDE = 0x7FFFFFFF  # the bits of a float32 but for its sign
COMPENSATION_DTYPE = torch.int16
LOST = torch.iinfo(COMPENSATION_DTYPE)


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """The precision of the arithmetic and of the state: float32 for half precision parameters."""
    return torch.float32 if dtype in HALF else dtype


def as_real(tensor: Tensor) -> Tensor:
    """Complex entries as pairs of reals, by a view; real tensors as they are."""
    return torch.view_as_real(tensor) if tensor.is_complex() else tensor


def widen(param: Tensor, compensation: Tensor | None) -> Tensor:
    """The parameter in the precision of the arithmetic, with the part it could not hold."""
    wide = param.to(compute_dtype(param.dtype))
    if compensation is None:
        return wide
    bits = wide.view(torch.int32)
    # never across zero: a parameter may have been set to it since, by pruning
    lost = torch.maximum(compensation, -(bits & MAGNITUDE))
    return (bits + lost).view(torch.float32)


def narrow(
    param: Tensor,
    wide: Tensor,
    compensation: Tensor | None = None,
    noise: torch.Generator | None = None,
) -> None:
    """Write wide values into a parameter, in place; ``noise`` asks for stochastic rounding."""
    wide = wide.to(compute_dtype(param.dtype))  # 0-D ones may be as wide as a number of the state
    param.copy_(wide if noise is None else round_stochastically(wide, param.dtype, noise))
    if compensation is not None:
        rounded = param.to(wide.dtype)
        lost = wide.view(torch.int32) - rounded.view(torch.int32)
        compensation.copy_(lost.clamp(LOST.min, LOST.max))


def noise_source(device: torch.device, step: float, index: int) -> torch.Generator:
    """The random numbers of one parameter in one step.

    They depend on nothing else, so that a resumed run repeats them, replicas of a model stay
    alike, and the generator of the training itself is left alone.
    """
    source = "cpu" if device.type == "meta" else device  # which has none, and rounds nothing
    return torch.Generator(source).manual_seed(int(step) * 2**20 + index)


def round_stochastically(wide: Tensor, dtype: torch.dtype, noise: torch.Generator) -> Tensor:
    """float32 values on the grid of a half precision dtype; their expected value is ``wide``.

    Values on the grid already stay as they are.
    """
    info = torch.finfo(dtype)
    _, exponent = torch.frexp(wide)
    bits = 1 - round(math.log2(info.eps))  # of the half precision significand
    smallest = info.smallest_normal * info.eps
    spacing = torch.ldexp(torch.ones_like(wide), exponent - bits).clamp(min=smallest)
    odds = 2 ** (FLOAT32_BITS - bits)
    # odd numbers lie evenly between zero and one, so that up and down are alike
    draws = 2 * torch.randint(odds // 2, wide.shape, generator=noise, device=wide.device) + 1
    return torch.floor(wide / spacing + draws / odds) * spacing
