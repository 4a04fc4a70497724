"""Whether tensors are still shaped as they were, and where they were.

Everything may be changed behind a table's back (``param.data = ...``), and a gradient is another
tensor in every step, so all of it is looked at in every step. Asking each tensor from Python costs
50 ns a question; torch's and Python's C interfaces, whose binary forms are stable across versions,
answer a kernel's library in a fraction of that, and all questions of a step are one call.
"""

from __future__ import annotations

import ctypes
from array import array
from collections.abc import Sequence
from ctypes import c_int64, c_void_p, py_object
from functools import cache
from itertools import chain
from operator import is_
from pathlib import Path
from typing import Any, ClassVar, TypeAlias

import torch
from torch import Tensor

State = dict[str, Tensor]
Container: TypeAlias = dict[Any, Any] | list[Any]

GRAD = "grad"
# what tells a gradient whose memory does not hold its entries as they are, by `real` or not
ASKED = {True: ("is_neg",), False: ("is_neg", "is_conj")}
# in the order that runtime.h wants
PYTHON = (
    "PyDict_Next", "PyList_Size", "PyList_GetItem", "PyObject_GetAttr",
    "PyObject_CallMethodObjArgs", "Py_DecRef",
)  # fmt: skip
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


class Kept(ctypes.Structure):
    """A container with what is in it; see ``runtime.h``."""

    _fields_: ClassVar[Any] = [
        ("object", c_void_p), ("dict", c_int64), ("count", c_int64), ("item", c_void_p)
    ]  # fmt: skip


def content(container: Container) -> list[Any]:
    """Keys and values of a dict in turn, or the members of a list."""
    if isinstance(container, dict):
        return [*chain.from_iterable(container.items())]
    return [*container]


class Rows(ctypes.Structure):
    """A table's rows, and what answers for them; see ``runtime.h``."""

    _fields_: ClassVar[Any] = [
        ("rows", c_int64),
        ("objects", c_int64),
        *((name, c_void_p) for name in ("states", "object", "known", "grad", "grad_known")),
        *((name, c_void_p) for name in ("grad_places", "torch")),
        ("type_place", c_int64),
        *((name, c_void_p) for name in ("type", "grad_name", "no")),
        ("questions", c_int64),
        ("question", c_void_p),
        ("containers", c_int64),
        *((name, c_void_p) for name in ("container", "next", "size", "at", "get", "ask", "drop")),
    ]


class RowWatch:
    """Parameters with their state as they are, and gradients that others may replace.

    Where the gradients of a step lie is written to ``places``. Keeps parameters and state alive,
    and no gradient. ``real`` says that entries are.
    """

    def __init__(
        self,
        params: list[Tensor],
        states: list[State],
        library: ctypes.CDLL,
        places: array[int],
        *,
        real: bool,
    ) -> None:
        self.params, self.states, self.asked = params, states, ASKED[real]
        self.containers: list[tuple[Any, list[Any]]] = []
        self.tensors = [*params, *chain.from_iterable(state.values() for state in states)]
        self.own = Watch(self.tensors, library)
        self.grads = Watch([self.grad(param) for param in params], library, places)
        self.rows = self.prepare() if self.own.torch else None
        self.place = ctypes.addressof(self.rows) if self.rows else 0
        self.ask = ctypes.PyDLL(library._name, handle=library._handle).same
        self.ask.argtypes, self.ask.restype = [c_void_p], c_int64

    @staticmethod
    def grad(param: Tensor) -> Tensor:
        """The gradient of a parameter that has one."""
        assert param.grad is not None
        return param.grad

    def prepare(self) -> Rows:
        """The rows as the library takes them."""
        self.kept = [
            array("q", map(id, self.states)),
            array("q", map(id, self.asked)),
            array("q", bytes(8 * len(self.params))),
        ]
        states, asked, room = map(address, self.kept)
        functions = [ctypes.cast(getattr(ctypes.pythonapi, name), c_void_p) for name in PYTHON]
        tensor = self.tensors[0].detach()
        type_place = next(
            place
            for place in range(0, object.__basicsize__, ctypes.sizeof(c_int64))
            if c_int64.from_address(id(tensor) + place).value == id(Tensor)
        )
        return Rows(
            len(self.params), len(self.tensors), states, address(self.own.objects),
            address(self.own.known), room, address(self.grads.known), address(self.grads.places),
            address(self.own.torch), type_place, id(Tensor), id(GRAD), id(False),
            len(self.asked), asked, 0, None, *functions,
        )  # fmt: skip

    def hold(self, containers: Sequence[Container]) -> None:
        """Watch these, too, which have to keep what is in them now."""
        if [*map(id, containers)] == [id(container) for container, _ in self.containers]:
            return  # they are watched, and `same` has said yes in this step
        self.containers = [(container, content(container)) for container in containers]
        if self.rows is None:
            return
        items = [array("q", map(id, own)) for _, own in self.containers]
        described = [
            Kept(id(container), isinstance(container, dict), len(own), address(own))
            for (container, _), own in zip(self.containers, items, strict=True)
        ]
        self.held = items, (Kept * len(described))(*described)
        self.rows.containers = len(described)
        self.rows.container = ctypes.addressof(self.held[1])

    def same(self) -> bool:
        """Whether nothing has moved, and gradients are of the kind they were."""
        if self.rows is not None:
            return bool(self.ask(self.place))
        for container, known in self.containers:
            own = content(container)
            if len(own) != len(known) or not all(map(is_, own, known)):
                return False
        found = [*chain.from_iterable(state.values() for state in self.states)]
        grads = [param.grad for param in self.params]
        return (
            len(found) == len(self.tensors) - len(self.params)
            and all(map(is_, found, self.tensors[len(self.params) :]))
            and all(type(grad) is Tensor for grad in grads)
            and not any(getattr(grad, name)() for name in self.asked for grad in grads)
            and self.grads.same([grad for grad in grads if grad is not None])
            and self.own.same()
        )


def prepare(library: ctypes.CDLL) -> None:
    """Say how a kernel's library is asked."""
    library.unchanged.argtypes = [c_int64, *[c_void_p] * 4, c_int64]
    library.unchanged.restype = c_int64
