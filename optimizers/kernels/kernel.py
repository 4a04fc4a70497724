"""A compiled rule: the library, and how it is called.

The fields of `Call`, `Norms` and `Whole` are those of ``runtime.h``.
"""

from __future__ import annotations

import ctypes
import os
from array import array
from collections.abc import Sequence
from ctypes import c_double, c_int64, c_void_p
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from optimizers.core import DecayMode, Rule, Values
from optimizers.kernels import build, watch
from optimizers.kernels.source import Form, Writer
from optimizers.kernels.stack import StackWriter
from optimizers.kernels.trace import (
    Graph,
    Layout,
    Untraceable,
    after_graph,
    before_graph,
    share_graph,
    step_graph,
)

BLOCK = 16384  # entries; four float32 columns of a block fit the second-level cache
# Entries of a block that is only read: each begins with waiting for memory, as nothing was asked
# for ahead of time. Both are in runtime.h, too.
NORM_BLOCK = 131072
# Entries that are worth a thread: less takes a millisecond, and on a busy machine waiting for
# another thread takes several.
SMALL = 2**19
# In a process that is forked later OpenMP waits forever for threads that stayed with the parent.
PROCESS = os.getpid()


class Call(ctypes.Structure):
    """One run of a kernel over a table; see ``runtime.h``."""

    _fields_: ClassVar[Any] = [
        ("rows", c_int64),
        ("items", c_int64),
        ("sizes", c_void_p),
        ("widths", c_void_p),
        ("heights", c_void_p),
        ("item_rows", c_void_p),
        ("item_starts", c_void_p),
        ("columns", c_void_p),
        ("steps", c_void_p),
        ("layouts", c_void_p),
        ("hyper", c_void_p),
        ("scales", c_void_p),
        ("unit_scales", c_void_p),
        ("unit_sizes", c_void_p),
        ("scale", c_double),
        ("bound", c_double),
        ("sign", c_double),
        ("slots", c_void_p),
        ("sums", c_void_p),
        ("threads", c_int64),
        ("advance", c_int64),
    ]


class Norms(ctypes.Structure):
    """Gradients whose squares are summed up; see ``runtime.h``."""

    _fields_: ClassVar[Any] = [
        ("rows", c_int64),
        ("items", c_int64),
        ("sizes", c_void_p),
        ("item_rows", c_void_p),
        ("item_starts", c_void_p),
        ("grads", c_void_p),
        ("layouts", c_void_p),
        ("parts", c_void_p),
        ("squares", c_void_p),
        ("threads", c_int64),
    ]


class Whole(ctypes.Structure):
    """What steps a table with all that its gradients need; see ``runtime.h``."""

    _fields_: ClassVar[Any] = [(name, c_void_p) for name in ("squares", "norms", "run", "call")]


@dataclass(frozen=True, eq=False)
class Kernel:
    """One graph in C++: ``columns`` and ``hypers`` are the order of its inputs.

    The first columns are ``entry_columns``; a ``factored`` kernel has values per row and column,
    and takes contiguous matrices, or ``stacked`` ones. Scalars that entries need, or that come of
    them in ``reductions``, are in ``slots`` of a row of the table; ``sums`` says in which each
    total of a `ModelHook` is.
    """

    name: str
    text: str
    columns: tuple[str, ...]
    entry_columns: tuple[str, ...]
    hypers: tuple[str, ...]
    slots: int
    reductions: int
    factored: bool
    stacked: bool
    sums: dict[str, int]

    @classmethod
    def of(cls, name: str, graph: Graph, form: Form) -> Kernel:
        """The C++ of a graph; raises Untraceable when there is none."""
        factored = any(node.vector for node in graph.walk())
        stacked = factored and graph.shape == "stack"
        writer = StackWriter(graph, form) if stacked else Writer(graph, form)
        sums = {
            key[4:]: writer.slots[node]
            for key, node in graph.outputs.items()
            if key.startswith("sum.")
        }
        return cls(
            name=name,
            text=writer.text(),
            columns=tuple(writer.columns),
            entry_columns=tuple(writer.entry_columns),
            hypers=tuple(graph.hypers),
            slots=max(len(writer.slots), 1),
            reductions=len(writer.reductions),
            factored=factored,
            stacked=stacked,
            sums=sums,
        )

    @property
    def ready(self) -> bool:
        """Whether the library is there already."""
        return build.ready(self.text, self.name)

    def library(self) -> ctypes.CDLL:
        """The library; compiles it if need be. Raises NoKernel when that is not possible."""
        library = build.load(self.text, self.name)
        for function in (library.run, library.squares):
            function.argtypes = [c_void_p]  # the address of a Call, or of Norms
        library.run.restype, library.squares.restype = None, c_double
        library.step.argtypes, library.step.restype = [c_int64, c_void_p, c_double], c_double
        watch.prepare(library)
        return library

    def numbers(self, values: Values) -> list[float]:
        """The hyperparameters in the kernel's order."""
        return [*map(vars(values).__getitem__, self.hypers)]


# the whole step; what a `ModelHook` sums up; what comes before and after a `Core`
PARTS = {
    "step": step_graph, "share": share_graph, "before": before_graph, "after": after_graph
}  # fmt: skip

_known: dict[object, Kernel | None] = {}
_alike: dict[object, Kernel] = {}  # a vector and a matrix often mean the same to a rule


def kernel_of(
    rule: Rule, mode: DecayMode, layout: Layout, form: Form, values: Values, part: str = "step"
) -> Kernel | None:
    """The kernel of a rule's step, or of another of `PARTS`; None for rules that have none.

    One per rule, options, place of the decay, layout of the state, and dtype; neither a model's
    shapes nor any number of ``values`` matter.
    """
    options = tuple((name, getattr(values, name)) for name in rule.options)
    traced = (rule.update, rule.core, rule.model, rule.still_first, rule.weight_decay_mode)
    key = (rule.name, *traced, tuple(rule.hypers), options, mode, layout, form, part)
    if key not in _known:
        try:
            name = rule.name if part == "step" else f"{rule.name}-{part}"
            kernel = Kernel.of(name, PARTS[part](rule, mode, layout, values), form)
            same = (kernel.text, kernel.name, kernel.columns, kernel.hypers)
            _known[key] = _alike.setdefault(same, kernel)
        except Untraceable:
            _known[key] = None
    return _known[key]


def threads_for(entries: int) -> int:
    """How many threads are worth their start; one in a forked process."""
    if entries < 1.5 * SMALL or os.getpid() != PROCESS:
        return 1
    return min(torch.get_num_threads(), round(entries / SMALL))


def blocks(
    sizes: Sequence[int], together: Sequence[int], most: int = BLOCK
) -> tuple[array[int], array[int]]:
    """The blocks of all rows, of ``most`` entries: which row each is in, and where it starts.

    ``together`` says of each row how many entries stay in one block: those of a small matrix.
    """
    rows, starts = array("q"), array("q")
    for row, (size, whole) in enumerate(zip(sizes, together, strict=True)):
        own = range(0, size, most // whole * whole)
        rows.extend([row] * len(own))
        starts.extend(own)
    return rows, starts
