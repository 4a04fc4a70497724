"""From a graph to C++: one function per pass over the entries, and one before it for the scalars.

The text needs no header and no library but OpenMP's; ``runtime.h`` stands behind it and runs it
over all tensors, blocks and threads.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from optimizers.kernels.expressions import C_TYPES, expression
from optimizers.kernels.trace import REDUCTIONS, SIZES, Graph, Node, Untraceable

# Read with this module: what an upgrade puts there later does not fit the code that calls it.
RUNTIME, STACKS = (Path(__file__).with_name(name).read_text() for name in ("runtime.h", "stack.h"))

STORAGE = {
    torch.float32: "float",
    torch.float64: "double",
    torch.bfloat16: "bf16",
    torch.float16: "_Float16",
}


# What the functions for scalars get: hyperparameters, the parameter's age and `SIZES`, its row of
# the table, its slots, its vectors, and what passes summed up per row and column.
SCALARS = (
    "const double* h, double t, const i64* size, void* const* at, double* s, T* const* v, "
    "double* const* r"
)
LENGTHS = {"row": "size[1]", "column": "size[2]"}
# What the functions for entries get: how many, where their columns (and values and sums that come
# along) are, the slots, what multiplies and what bounds gradients, and where sums go.
ENTRIES = "i64 n, void* const* at, const double* s, T factor, T bound, double* sums"
KINDS = ("scalar", "row", "column", "matrix")  # as runtime.h counts them


@dataclass(frozen=True)
class Form:
    """How a graph meets memory: ``storage`` of the parameters, whether they are compensated, and
    the dtype of the gradients.
    """

    storage: torch.dtype
    compensated: bool
    grad: torch.dtype

    def columns(self, graph: Graph) -> list[str]:
        """What the rows of a table hold pointers to: first all with one value per entry."""
        names = ["param", "grad", *(["compensation"] if self.compensated else [])]
        states = [n for n in graph.inputs if n not in ("grad", "param", "t")]
        states = [n for n in states if not n.startswith("hyper.")]
        return names + sorted(states, key=lambda n: not graph.inputs[n].entry)


class Writer:
    """Writes the C++ of one graph."""

    stack = False  # of small matrices

    def __init__(self, graph: Graph, form: Form) -> None:
        self.graph, self.form = graph, form
        self.columns = form.columns(graph)
        self.nodes = list(graph.walk())
        self.names = {node: f"v{index}" for index, node in enumerate(self.nodes)}
        # scalars that entries read, or that come from entries, go through memory
        readers = [n for n in self.nodes if n.entry or (self.stack and n.vector)]
        self.reductions = [node for node in self.nodes if node.reduction]
        self.vectors = [node for node in self.nodes if node.vector]
        read = [arg for node in readers for arg in node.inputs if self.slotted(arg)]
        read += [node for node in self.reductions if not node.vector]
        read += [node for name, node in graph.outputs.items() if name.startswith("sum.")]
        self.slots = {node: slot for slot, node in enumerate(dict.fromkeys(read))}

    def slotted(self, node: Node) -> bool:
        """Whether entries read a value from a slot; the others come along with the entries."""
        return node.kind in ("scalar", "row")

    def along(self, node: Node) -> bool:
        """Whether there is a value, or a sum, for every step of a loop over entries."""
        return node.kind == "column"

    @property
    def entry_columns(self) -> list[str]:
        """Columns with one value per entry."""
        inputs = self.graph.inputs
        return [c for c in self.columns if c == "compensation" or inputs[c].entry]

    def storage(self, column: str) -> str:
        """The C++ type in memory of a column."""
        if column in ("param", "grad"):
            return STORAGE[self.form.storage if column == "param" else self.form.grad]
        if column == "compensation":
            return "short"
        return C_TYPES[self.graph.inputs[column].dtype]

    def written(self) -> dict[str, Node]:
        """Columns with one value per entry that change, and their new values."""
        return {k: v for k, v in self.graph.outputs.items() if k in self.entry_columns}

    def needed(self, number: int) -> list[Node]:
        """The nodes of entries that a pass computes."""
        last = number == self.graph.passes - 1
        goals = [n.inputs[0] for n in self.reductions if n.level == number + 1]
        goals += list(self.written().values()) if last else []
        seen: set[Node] = set()
        while goals:
            node = goals.pop()
            if node not in seen:
                seen.add(node)
                goals += [arg for arg in node.inputs if arg.entry]
        return [node for node in self.nodes if node in seen and node.entry]

    def scalars(self, number: int) -> Iterable[str]:
        """The function that computes a parameter's scalars before a pass."""
        yield f"static void scalars{number}({SCALARS}) {{"
        for node in self.nodes:
            if node.entry or node.level > number:
                continue
            if node.vector:
                yield from self.vector(node, number)
                continue
            if node.op in REDUCTIONS and not node.reduction:
                yield from self.fold(node)
                continue
            kind = C_TYPES[node.dtype]
            yield f"  const {kind} {self.names[node]} = ({kind})({self.scalar(node)});"
        for node, slot in self.slots.items():
            if not (node.reduction or node.vector) and node.level <= number:
                yield f"  s[{slot}] = (double){self.names[node]};"
        if number == self.graph.stages - 1:
            for column, node in self.graph.outputs.items():
                if column in self.columns and column not in self.entry_columns:
                    if node.vector:
                        yield from self.vector_out(node, column)
                        continue
                    kind, index = self.storage(column), self.columns.index(column)
                    yield f"  *({kind}*)at[{index}] = ({kind}){self.names[node]};"
        yield "}"

    def scalar(self, node: Node) -> str:
        """The expression of one scalar."""
        if node.op == "input":
            source = node.args[0]
            if source == "t":
                return "t"
            if source.startswith("hyper."):
                return f"h[{self.graph.hypers.index(source[6:])}]"
            return f"*({C_TYPES[node.dtype]}*)at[{self.columns.index(source)}]"
        if node.reduction:
            total = f"s[{self.slots[node]}]"
            return f"root({total})" if node.op == "linalg_vector_norm" else total
        if node.op == "size":
            return f"size[{SIZES.index(node.args[0])}]"
        return expression(node, self.names.__getitem__)

    def vector_out(self, node: Node, column: str) -> Iterable[str]:
        """Write a value per row or column into the table's column of that name."""
        to = f"(({self.storage(column)}*)at[{self.columns.index(column)}])[i]"
        yield f"  for (i64 i = 0; i < {LENGTHS[node.kind]}; i++) {to} = {self.names[node]}[i];"

    def vector(self, node: Node, number: int) -> Iterable[str]:
        """One value per row or column, computed when it can be and kept for later passes."""
        name = self.names[node]
        yield f"  T* {name} = v[{self.vectors.index(node)}];"
        if node.level < number or node.op == "input":
            return
        if node.reduction:
            value = f"r[{self.reductions.index(node)}][i]"
            value = f"root({value})" if node.op == "linalg_vector_norm" else value
        else:
            names = {a: f"{self.names[a]}[i]" if a.vector else self.names[a] for a in node.inputs}
            value = expression(node, names.__getitem__)
        yield f"  for (i64 i = 0; i < {LENGTHS[node.kind]}; i++) {name}[i] = (T)({value});"

    def fold(self, node: Node) -> Iterable[str]:
        """A scalar made of a vector."""
        name, (vector,) = self.names[node], node.inputs
        value = f"(double){self.names[vector]}[i]"
        norm = node.op == "linalg_vector_norm"
        yield f"  double sum_{name} = 0;"
        yield (
            f"  for (i64 i = 0; i < {LENGTHS[vector.kind]}; i++) "
            f"sum_{name} += {f'{value} * {value}' if norm else value};"
        )
        total = f"root(sum_{name})" if norm else f"sum_{name}"
        yield f"  const {C_TYPES[node.dtype]} {name} = ({C_TYPES[node.dtype]}){total};"

    def walks(self) -> Iterable[str]:
        """The functions of all passes, and a table of them."""
        for number in range(self.graph.passes):
            last = number == self.graph.passes - 1
            sums = [n for n in self.reductions if n.level == number + 1]
            yield from self.entries(
                f"entries{number}", self.needed(number), self.written() if last else {}, sums
            )
        names = ", ".join(f"entries{number}" for number in range(self.graph.passes))
        yield f"static void (*const entries_of[])({ENTRIES}) = {{{names}}};"

    def entries(
        self, name: str, needed: Sequence[Node], written: Mapping[str, Node], sums: Sequence[Node]
    ) -> Iterable[str]:
        """The function that goes over a block of entries once."""
        yield f"static void {name}({ENTRIES}) {{"
        used = {"compensation", *written, *(n.args[0] for n in needed if n.op == "input")}
        columns = {index: c for index, c in enumerate(self.entry_columns) if c in used}
        for index, column in columns.items():
            kind = self.storage(column)
            const = "" if column in written or column == "compensation" else "const "
            yield f"  {const}{kind}* __restrict c{index} = ({const}{kind}*)at[{index}];"
        others = [*dict.fromkeys(a for node in needed for a in node.inputs if not a.entry)]
        yield from self.operands(others, sums)
        clause = ""
        if sums:
            totals = [f"r{index}" for index in range(len(sums))]
            yield f"  double {', '.join(f'{total} = 0' for total in totals)};"
            clause = f" reduction(+ : {', '.join(totals)})"
        yield "  for (i64 strip = 0; strip < n; strip += STRIP) {"
        yield "  const i64 end = strip + STRIP < n ? strip + STRIP : n;"
        yield from (f"  ahead(c{index} + strip);" for index in columns)
        yield f"  OMP(omp simd{clause})"
        yield "  for (i64 i = strip; i < end; i++) {"
        for node in filter(self.along, others):
            yield f"    const T {self.names[node]} = x{self.names[node]}[i];"
        yield from self.one_entry(needed, written, sums)
        yield "  }}"
        for index, node in enumerate(sums):
            yield f"  sums[{self.reductions.index(node)}] = r{index};"
        yield "}"

    def operands(self, others: Sequence[Node], sums: Sequence[Node]) -> Iterable[str]:
        """What entries need that is not one of theirs: where it comes along, or its value."""
        base = len(self.entry_columns)
        for node in others:
            if self.along(node):
                place = f"at[{base + self.vectors.index(node)}]"
                yield f"  const T* __restrict x{self.names[node]} = (const T*){place};"
        for node in sums:
            if self.along(node):
                place = f"at[{base + len(self.vectors) + self.reductions.index(node)}]"
                yield f"  double* __restrict sum_{self.names[node]} = (double*){place};"
        for node in others:
            if self.along(node):
                continue
            # a norm is a sum of squares in its slot
            kind = "bool" if node.dtype == torch.bool else "T"
            value = f"s[{self.slots[node]}]"
            if node.op == "linalg_vector_norm" and node.reduction and not node.vector:
                value = f"root({value})"
            yield f"  const {kind} {self.names[node]} = ({kind})({value});"

    def one_entry(
        self, needed: Sequence[Node], written: Mapping[str, Node], sums: Sequence[Node]
    ) -> Iterable[str]:
        """What the loop does with one entry."""
        for node in needed:
            kind = C_TYPES[node.dtype]
            value = self.load(node.args[0]) if node.op == "input" else self.entry(node)
            yield f"    const {kind} {self.names[node]} = {value};"
        for index, node in enumerate(sums):
            value = f"(double){self.names[node.inputs[0]]}"
            term = f"{value} * {value}" if node.op == "linalg_vector_norm" else value
            total = f"sum_{self.names[node]}[i]" if self.along(node) else f"r{index}"
            yield f"    {total} += {term};"
        for column, node in written.items():
            if column != "param":
                yield f"    {self.at(column)} = {self.names[node]};"
        if "param" in written:
            yield f"    const T wide = {self.names[written['param']]};"
            yield f"    store({self.at('param')}, wide);"
            if self.form.compensated:
                yield f"    {self.at('compensation')} = lost(wide, load({self.at('param')}));"

    def load(self, column: str) -> str:
        """A column's entry in the precision of the arithmetic."""
        if column == "grad":
            return f"clip(load({self.at(column)}), bound) * factor"
        if column == "param" and self.form.compensated:
            return f"restored(load({self.at(column)}), {self.at('compensation')})"
        return f"load({self.at(column)})"

    def at(self, column: str) -> str:
        """A column's entry where it lies in memory."""
        return f"c{self.columns.index(column)}[i]"

    def entry(self, node: Node) -> str:
        """A node's expression where scalars are in the precision of the arithmetic already.

        What divides all entries is inverted once, as a division takes several multiplications.
        """
        narrowed = [
            replace(arg, dtype=self.graph.dtype)
            if isinstance(arg, Node) and not arg.entry and arg.dtype != torch.bool
            else arg
            for arg in node.args
        ]
        named = {
            copy: self.names[arg]
            for copy, arg in zip(narrowed, node.args, strict=True)
            if isinstance(arg, Node)
        }
        op, divisor = node.op, narrowed[-1]
        if op == "div" and isinstance(divisor, Node) and self.slotted(divisor):
            op, named[divisor] = "mul", f"(1 / {named[divisor]})"
        return expression(replace(node, op=op, args=tuple(narrowed)), named.__getitem__)

    def text(self) -> str:
        """The whole file."""
        if any(
            node.kind != "scalar"
            and node.dtype not in (self.graph.dtype, *([torch.bool] if node.entry else []))
            for node in self.nodes
        ):
            raise Untraceable("entries in another precision than the parameter's")
        first, second = RUNTIME.split("// ---- kernel ----\n")
        scalars = [line for n in range(self.graph.stages) for line in self.scalars(n)]
        parts = [*self.definitions(), first, *scalars, *self.walks(), *self.tables()]
        return "\n".join([*parts, *([STACKS] if self.stack else []), second])

    def definitions(self) -> Iterable[str]:
        """What the runtime has to know before the functions."""
        scalars_alike = (
            all(self.graph.inputs[c].entry for c in self.columns if c != "compensation")
            and not any(node.op == "size" for node in self.nodes)
            and not self.reductions
        )
        yield f"typedef {C_TYPES[self.graph.dtype]} T;"
        yield f"#define STORED {STORAGE[self.form.grad]}"
        yield f"#define PASSES {self.graph.passes}"
        yield f"#define STAGES {self.graph.stages}"
        yield f"#define COLUMNS {len(self.columns)}"
        yield f"#define ENTRY_COLUMNS {len(self.entry_columns)}"
        yield f"#define SLOTS {max(len(self.slots), 1)}"
        yield f"#define SUMS {len(self.reductions)}"
        yield f"#define VECTORS {len(self.vectors)}"
        yield f"#define STACK {self.stack:d}"
        yield f"#define ALIKE {scalars_alike:d}"

    def tables(self) -> Iterable[str]:
        """What the runtime has to know of the columns and sums, and the functions for scalars."""
        written = {"compensation", *self.written()}
        sizes = [f"sizeof({self.storage(column)})" for column in self.entry_columns]
        changes = [f"{column in written:d}" for column in self.entry_columns]
        slots = [str(self.slots.get(node, -1)) for node in self.reductions]
        passes = [str(node.level - 1) for node in self.reductions]
        kinds = [str(KINDS.index(node.kind)) for node in self.reductions]
        names = [f"scalars{number}" for number in range(self.graph.stages)]
        yield f"static const int bytes_of[] = {{{', '.join(sizes)}}};"
        yield f"static const bool changes[] = {{{', '.join(changes)}}};"
        yield f"static const int sum_slots[] = {{{', '.join(slots) or '0'}}};"
        yield f"static const int sum_passes[] = {{{', '.join(passes) or '0'}}};"
        yield f"static const int sum_kinds[] = {{{', '.join(kinds) or '0'}}};"
        yield f"static void (*const scalars_of[])({SCALARS}) = {{{', '.join(names)}}};"
        yield from self.vector_tables()

    def vector_tables(self) -> Iterable[str]:
        """What the runtime has to know of values per row and column."""
        inputs = {name: node for node in self.vectors if node.op == "input" for name in node.args}
        rows = [
            f"{{{self.slots.get(node, -1)}, {int(node.kind == 'column')}, "
            f"{self.columns.index(node.args[0]) if node.args[0] in inputs else -1}}}"
            for node in self.vectors
        ]
        yield f"static const Vector vectors[] = {{{', '.join(rows) or '{}'}}};"
