"""Whether tensors are still shaped as they were, and where they were.

Everything may be changed behind a table's back (``param.data = ...``), and a gradient is another
tensor in every step, so all of it is looked at in every step. Asking each tensor from Python costs
50 ns a question; torch's C interface, whose binary form is stable across versions, answers a
kernel's library in a fraction of that.
"""

from __future__ import annotations

import ctypes
from array import array
from collections.abc import Sequence
from ctypes import c_int64, c_void_p, py_object
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

# in the order that runtime.h wants
NAMES = ("layout", "dtype", "numel", "dim", "data_ptr", "strides")


@cache
def interface() -> array[int] | None:
    """How far into a tensor's Python object is what torch's C interface takes for it, and where the
    functions of that interface are. None where torch offers no such thing.
    """
    try:
        library = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"))
        functions = [getattr(library, f"aoti_torch_get_{name}") for name in NAMES]
        inside = depth(torch.empty(0))
    except (OSError, AttributeError):
        return None
    addresses = [ctypes.cast(function, c_void_p).value or 0 for function in functions]
    return None if inside is None else array("q", [inside, *addresses])


def depth(tensor: Tensor) -> int | None:
    """The first of `interface`: where the object has the same word as the handle torch makes."""
    pointer: Any = ctypes.pythonapi.PyCapsule_GetPointer
    pointer.argtypes, pointer.restype = [py_object, c_void_p], c_void_p
    capsules = torch._C._aoti.unsafe_alloc_void_ptrs_from_tensors([tensor])
    word = c_int64.from_address(pointer(capsules[0], None)).value
    torch._C._aoti.alloc_tensors_by_stealing_from_void_ptrs(capsules)
    places = range(object.__basicsize__, Tensor.__basicsize__, ctypes.sizeof(c_int64))
    return next((n for n in places if c_int64.from_address(id(tensor) + n).value == word), None)


def address(values: array[Any] | None) -> int | None:
    """Where an array lies in memory; None stands for C's null."""
    return None if values is None else values.buffer_info()[0]


class Watch:
    """Dense tensors that are compared with what they were when the watch began.

    With ``places``, others may come in their stead, as many and like them; where these lie is then
    written there, and none of either is kept alive.
    """

    def __init__(
        self, tensors: Sequence[Tensor], library: ctypes.CDLL, places: array[int] | None = None
    ) -> None:
        self.unchanged, self.places, self.torch = library.unchanged, places, interface()
        self.tensors = tensors if places is None else []
        self.objects = array("q", map(id, tensors))
        self.known = array("q", bytes(8 * sum(len(NAMES) - 1 + t.dim() for t in tensors)))
        self.arguments = (address(self.torch), address(self.known), address(places))
        self.before = None if self.torch else self.look(tensors)
        if self.torch:
            self.ask(self.objects, learn=True)

    def same(self, others: Sequence[Tensor] | None = None) -> bool:
        """Whether nothing has moved or changed its shape, or whether others are like the first."""
        if self.torch is None:
            return self.look(self.tensors if others is None else others) == self.before
        objects = self.objects if others is None else array("q", map(id, others))
        return self.ask(objects, learn=False)

    def ask(self, objects: array[int], *, learn: bool) -> bool:
        """Let torch's interface answer, to be noted or to be compared."""
        return bool(self.unchanged(len(objects), address(objects), *self.arguments, learn))

    def look(self, tensors: Sequence[Tensor]) -> object:
        """What is compared, asked from Python; None for tensors that have no memory."""
        if any(tensor.layout != torch.strided for tensor in tensors):
            return None
        found = array("q", [tensor.data_ptr() for tensor in tensors])
        shapes = [(tensor.dtype, tensor.shape, tensor.stride()) for tensor in tensors]
        if self.places is None:
            return found, shapes
        self.places[:] = found
        return shapes if 0 not in found else None


def prepare(library: ctypes.CDLL) -> None:
    """Say how a kernel's library is asked."""
    library.unchanged.argtypes = [c_int64, *[c_void_p] * 4, c_int64]
    library.unchanged.restype = c_int64
