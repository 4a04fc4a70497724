"""Small things the optimizer tests share."""

import zlib

import torch
from torch import Tensor


def generator(*key: object) -> torch.Generator:
    """A random generator that depends on the key alone."""
    return torch.Generator().manual_seed(zlib.crc32(repr(key).encode()))


def problem(
    shape: tuple[int, ...], steps: int, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, list[Tensor]]:
    """A starting point and a gradient for every step."""
    source = generator(shape, steps)
    start = torch.randn(shape, generator=source, dtype=torch.float64)
    grads = [torch.randn(shape, generator=source, dtype=torch.float64) for _ in range(steps)]
    return start.to(dtype), [grad.to(dtype) for grad in grads]


def drive(optimizer: torch.optim.Optimizer, param: Tensor, grads: list[Tensor]) -> list[Tensor]:
    """Feed the gradients one by one; the parameter after each step."""
    path = []
    for grad in grads:
        param.grad = grad.clone()
        optimizer.step()
        path.append(param.detach().clone())
    return path


def holed(values):
    """The values as every second column of a larger tensor, and that tensor."""
    whole = torch.full((*values.shape[:-1], 2 * values.shape[-1]), 7.0, dtype=values.dtype)
    view = whole[..., ::2]
    view.copy_(values)
    return view


LAYOUTS = {
    "contiguous": lambda values: values.clone(),
    "channels_last": lambda values: values.clone(memory_format=torch.channels_last),
    "transposed": lambda values: values.mT.contiguous().mT,
    "sliced": holed,
}
