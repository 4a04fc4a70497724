"""Tensors without memory, made without what torch imports for them."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode


class WithoutSympy(TorchFunctionMode):
    """For a meta tensor torch.zeros_like imports sympy, a third of a second in every process."""

    NEW: ClassVar[dict[Any, Any]] = {
        torch.zeros_like: Tensor.new_zeros,
        torch.full_like: Tensor.new_full,
    }

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> object:
        kwargs = kwargs or {}
        if func in self.NEW and not kwargs.keys() - {"memory_format", "dtype"}:
            tensor, *fill = args
            return self.NEW[func](tensor, tensor.shape, *fill, dtype=kwargs.get("dtype"))
        return func(*args, **kwargs)
