"""Whether tensors are still where they were, and shaped as they were.

Everything may be changed behind a table's back (``param.data = ...``), so it is looked at in every
step. Asking each tensor from Python costs 50 ns a question; torch's C interface, whose binary form
is stable across versions, answers a kernel's library in a fraction of that.
"""

from __future__ import annotations

import ctypes
import weakref
from array import array
from collections.abc import Sequence
from ctypes import c_int64, c_void_p, py_object
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

NAMES = ("data_ptr", "numel", "dim", "strides")  # in the order that runtime.h wants


@cache
def interface() -> array[int] | None:
    """Where the functions that answer for a tensor are; None where torch does not offer them."""
    try:
        library = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"))
        functions = [getattr(library, f"aoti_torch_get_{name}") for name in NAMES]
        torch._C._aoti.unsafe_alloc_void_ptrs_from_tensors([])
        torch._C._aoti.alloc_tensors_by_stealing_from_void_ptrs([])
    except (OSError, AttributeError):
        return None
    return array("q", [ctypes.cast(function, c_void_p).value or 0 for function in functions])


def address(values: array[Any] | None) -> int | None:
    """Where an array lies in memory; None stands for C's null."""
    return None if values is None else values.buffer_info()[0]


class Watch:
    """Tensors that are compared with what they were when the watch began."""

    def __init__(self, tensors: Sequence[Tensor], library: ctypes.CDLL) -> None:
        self.tensors, self.unchanged = tensors, library.unchanged
        functions = interface()
        self.arguments: tuple[int | None, ...] | None = None
        self.before = None if functions else self.look()
        if functions is None:
            return
        capsules = torch._C._aoti.unsafe_alloc_void_ptrs_from_tensors([*tensors])
        weakref.finalize(self, torch._C._aoti.alloc_tensors_by_stealing_from_void_ptrs, capsules)
        pointer: Any = ctypes.pythonapi.PyCapsule_GetPointer
        pointer.argtypes, pointer.restype = [py_object, c_void_p], c_void_p
        handles = array("q", [pointer(capsule, None) for capsule in capsules])
        known = array("q")
        for tensor in tensors:
            known.extend((tensor.data_ptr(), tensor.numel(), tensor.dim(), *tensor.stride()))
        self.kept = (functions, handles, known)
        self.arguments = (len(tensors), address(handles), address(functions), address(known))

    def look(self) -> list[tuple[int, torch.Size, tuple[int, ...]]]:
        """What is compared, asked from Python."""
        return [(tensor.data_ptr(), tensor.shape, tensor.stride()) for tensor in self.tensors]

    def same(self) -> bool:
        """Whether nothing has moved or changed its shape."""
        if self.arguments is None:
            return self.look() == self.before
        return bool(self.unchanged(*self.arguments))


def prepare(library: ctypes.CDLL) -> None:
    """Say how a kernel's library is asked."""
    library.unchanged.argtypes, library.unchanged.restype = [c_int64, *[c_void_p] * 3], c_int64
