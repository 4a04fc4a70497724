"""Householder's reflections by compiled code, for rules that keep bases.

What is left of a QR decomposition are products of matrices, in ``optimizers.rules.reflections``.
"""

from __future__ import annotations

from collections.abc import Sequence
from ctypes import c_int64, c_void_p
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from optimizers.kernels import build
from optimizers.kernels.expressions import C_TYPES
from optimizers.kernels.kernel import threads_for
from optimizers.kernels.source import RUNTIME
from optimizers.parts import Reflect

NAME = "reflect"
REFLECT = Path(__file__).with_name("reflect.h").read_text()


@dataclass(frozen=True)
class Reflections:
    """Those of matrices in one precision."""

    dtype: torch.dtype

    @property
    def text(self) -> str:
        """The C++."""
        first, _ = RUNTIME.split("// ---- kernel ----\n")
        return "\n".join([f"typedef {C_TYPES[self.dtype]} T;", first, REFLECT])

    @property
    def ready(self) -> bool:
        """Whether the library is there already."""
        return build.ready(self.text, NAME)

    @property
    def kernels(self) -> list[Reflections]:
        """All that there are, as of a `Signature`."""
        return [self]

    def function(self) -> Any:
        """The library's; compiles it if need be. Raises NoKernel when that is not possible."""
        function = build.load(self.text, NAME).reflect
        function.argtypes = [c_void_p, c_int64, c_int64, c_int64, c_void_p, c_int64]
        function.restype = None
        return function


def reflect_by(needed: Sequence[Reflections]) -> Reflect:
    """What reflects rows of these precisions; raises NoKernel when it cannot be compiled."""
    functions = {own.dtype: own.function() for own in needed}

    def reflect(rows: Tensor, inverses: Tensor, memory: Tensor) -> None:
        place, (count, length) = rows.data_ptr(), rows.shape
        threads = threads_for(count * rows.numel() // 16)  # entries in the cache are soon done
        functions[rows.dtype](place, rows.stride(0), count, length, inverses.data_ptr(), threads)

    return reflect
