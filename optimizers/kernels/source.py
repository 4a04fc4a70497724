"""From a graph to C++: one function per pass over the entries, and one before it for the scalars.

The text needs no header and no library but OpenMP's; ``runtime.h`` stands behind it and runs it
over all tensors, blocks and threads.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch

from optimizers.kernels.trace import Graph, Node, Untraceable

RUNTIME = Path(__file__).with_name("runtime.h")

C_TYPES = {torch.float32: "float", torch.float64: "double", torch.bool: "bool"}
STORAGE = {
    torch.float32: "float",
    torch.float64: "double",
    torch.bfloat16: "bf16",
    torch.float16: "_Float16",
}

Printer = Callable[..., str]


def scaled(sign: str) -> Printer:
    """``a + alpha·b`` with torch's optional alpha."""
    return lambda a, b, alpha="": f"{a} {sign} {alpha}{' * ' if alpha else ''}{b}"


def clamp(x: str, low: str | None = None, high: str | None = None) -> str:
    """Torch's clamp, which keeps NaN."""
    inner = x if low is None else f"at_least({x}, {low})"
    return inner if high is None else f"at_most({inner}, {high})"


def power(base: str, exponent: str) -> str:
    """``base^exponent``, by multiplication or a root where torch does that, too."""
    simple = {"2": f"{base} * {base}", "0.5": f"root({base})", "2.0": f"{base} * {base}"}
    bare = exponent.rpartition(")")[2]  # without its cast
    return simple.get(bare, f"power({base}, {exponent})")


# torch's operation -> the C++ expression of its arguments, which have the type of the result
ARITHMETIC: Mapping[str, Printer] = MappingProxyType(
    {
        "add": scaled("+"),
        "sub": scaled("-"),
        "rsub": lambda a, b, alpha="": scaled("-")(b, a, alpha),
        "mul": lambda a, b: f"{a} * {b}",
        "div": lambda a, b: f"{a} / {b}",
        "neg": lambda a: f"-{a}",
        "reciprocal": lambda a: f"1 / {a}",
        "sqrt": lambda a: f"root({a})",
        "rsqrt": lambda a: f"1 / root({a})",
        "square": lambda a: f"{a} * {a}",
        "abs": lambda a: f"magnitude({a})",
        "sign": lambda a: f"sign({a})",
        "log": lambda a: f"logarithm({a})",
        "exp": lambda a: f"exponential({a})",
        "pow": power,
        "maximum": lambda a, b: f"larger({a}, {b})",
        "minimum": lambda a, b: f"smaller({a}, {b})",
        "clamp": clamp,
        "clamp_min": clamp,
        "clamp_max": lambda a, high: clamp(a, None, high),
        "addcmul": lambda a, b, c, value="1": f"{a} + {value} * {b} * {c}",
        "addcdiv": lambda a, b, c, value="1": f"{a} + {value} * ({b} / {c})",
        "lerp": lambda a, b, weight: f"{a} + {weight} * ({b} - {a})",
        "_to_copy": lambda a: a,
        "clone": lambda a: a,
        "detach": lambda a: a,
        "alias": lambda a: a,
        "constant": lambda a: a,
    }
)
COMPARISONS = {"eq": "==", "ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">="}
LOGIC = {"bitwise_and": "&&", "logical_and": "&&", "bitwise_or": "||", "logical_or": "||"}


def literal(value: float | bool) -> str:
    """A number as C++ writes it, exactly."""
    if isinstance(value, bool):
        return str(value).lower()
    if math.isnan(value):
        return '__builtin_nan("")'
    if math.isinf(value):
        return f"{'-' if value < 0 else ''}__builtin_inf()"
    return repr(value)


def expression(node: Node, name: Callable[[Node], str]) -> str:
    """The C++ expression of one node; ``name`` gives those of its arguments.

    Raises Untraceable for operations that have none.
    """
    kind = C_TYPES[node.dtype]

    def cast(arg: Any, to: str) -> str:
        if arg is None or (isinstance(arg, Node) and C_TYPES[arg.dtype] == to):
            return name(arg) if arg is not None else None  # type: ignore[return-value]
        return f"({to}){name(arg) if isinstance(arg, Node) else literal(arg)}"

    if node.op in COMPARISONS:
        wide = {arg.dtype for arg in node.inputs}
        both = "double" if torch.float64 in wide else "float"
        first, second = (cast(arg, both) for arg in node.args)
        return f"{first} {COMPARISONS[node.op]} {second}"
    if node.op in LOGIC and kind == "bool":
        return f" {LOGIC[node.op]} ".join(cast(arg, "bool") for arg in node.args)
    if node.op in ("logical_not", "bitwise_not") and kind == "bool":
        return f"!{cast(node.args[0], 'bool')}"
    if node.op == "where":
        condition, yes, no = node.args
        return f"{cast(condition, 'bool')} ? {cast(yes, kind)} : {cast(no, kind)}"
    if node.op == "pow" and not isinstance(node.args[1], Node):
        return power(cast(node.args[0], kind), repr(node.args[1]))
    if node.op not in ARITHMETIC:
        raise Untraceable(f"{node.op} has no C++ form")
    return ARITHMETIC[node.op](*(cast(arg, kind) for arg in node.args))


@dataclass(frozen=True)
class Form:
    """How a graph meets memory: ``storage`` of the parameters, and whether they are compensated."""

    storage: torch.dtype
    compensated: bool

    def columns(self, graph: Graph) -> list[str]:
        """What the rows of a table hold pointers to: first all with one value per entry."""
        names = ["param", "grad", *(["compensation"] if self.compensated else [])]
        states = [n for n in graph.inputs if n not in ("grad", "param", "t")]
        states = [n for n in states if not n.startswith("hyper.")]
        return names + sorted(states, key=lambda n: not graph.inputs[n].entry)


class Writer:
    """Writes the C++ of one graph."""

    def __init__(self, graph: Graph, form: Form) -> None:
        self.graph, self.form = graph, form
        self.columns = form.columns(graph)
        self.nodes = list(graph.walk())
        self.names = {node: f"v{index}" for index, node in enumerate(self.nodes)}
        # scalars that entries read, or that come from entries, go through memory
        entries = [node for node in self.nodes if node.entry]
        read = [arg for node in entries for arg in node.inputs if not arg.entry]
        read += [node for node in self.nodes if node.reduction]
        read += [node for name, node in graph.outputs.items() if name.startswith("sum.")]
        self.slots = {node: slot for slot, node in enumerate(dict.fromkeys(read))}
        self.reductions = [node for node in self.nodes if node.reduction]

    @property
    def entry_columns(self) -> list[str]:
        """Columns with one value per entry."""
        inputs = self.graph.inputs
        return [c for c in self.columns if c == "compensation" or inputs[c].entry]

    def storage(self, column: str) -> str:
        """The C++ type in memory of a column."""
        if column in ("param", "grad"):
            return STORAGE[self.form.storage]
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
        inputs = "const double* h, double t, void* const* at, double* s"
        yield f"static void scalars{number}({inputs}) {{"
        hypers = self.graph.hypers
        for node in self.nodes:
            if node.entry or node.level > number:
                continue
            kind, name = C_TYPES[node.dtype], self.names[node]
            if node.op == "input":
                source = node.args[0]
                if source == "t":
                    value = "t"
                elif source.startswith("hyper."):
                    value = f"h[{hypers.index(source[6:])}]"
                else:
                    value = f"*({kind}*)at[{self.columns.index(source)}]"
            elif node.reduction:
                total = f"s[{self.slots[node]}]"
                value = f"root({total})" if node.op == "linalg_vector_norm" else total
            else:
                value = expression(node, self.names.__getitem__)
            yield f"  const {kind} {name} = ({kind})({value});"
        for node, slot in self.slots.items():
            if not node.reduction and node.level <= number:
                yield f"  s[{slot}] = (double){self.names[node]};"
        if number == self.graph.stages - 1:
            for column, node in self.graph.outputs.items():
                if column in self.columns and column not in self.entry_columns:
                    kind, index = self.storage(column), self.columns.index(column)
                    yield f"  *({kind}*)at[{index}] = ({kind}){self.names[node]};"
        yield "}"

    def entries(self, number: int) -> Iterable[str]:
        """The function that goes over a block of entries in one pass."""
        last = number == self.graph.passes - 1
        needed, written = self.needed(number), self.written() if last else {}
        sums = [n for n in self.reductions if n.level == number + 1]
        yield (
            f"static void entries{number}"
            "(i64 n, void* const* at, const double* s, T factor, T bound, double* sums) {"
        )
        used = {node.args[0] for node in needed if node.op == "input"}
        for index, column in enumerate(self.entry_columns):
            if column in used | written.keys() or column == "compensation":
                kind = self.storage(column)
                const = "" if column in written or column == "compensation" else "const "
                yield f"  {const}{kind}* __restrict c{index} = ({const}{kind}*)at[{index}];"
        scalars = dict.fromkeys(a for node in needed for a in node.inputs if not a.entry)
        for node in scalars:
            # a norm is a sum of squares in its slot
            kind = "bool" if node.dtype == torch.bool else "T"
            value = f"s[{self.slots[node]}]"
            value = f"root({value})" if node.op == "linalg_vector_norm" else value
            yield f"  const {kind} {self.names[node]} = ({kind})({value});"
        clause = ""
        if sums:
            totals = [f"r{index}" for index in range(len(sums))]
            yield f"  double {', '.join(f'{total} = 0' for total in totals)};"
            clause = f" reduction(+ : {', '.join(totals)})"
        yield "  for (i64 strip = 0; strip < n; strip += STRIP) {"
        yield "  const i64 end = strip + STRIP < n ? strip + STRIP : n;"
        for index, column in enumerate(self.entry_columns):
            if column in used | written.keys() or column == "compensation":
                yield f"  ahead(c{index} + strip);"
        yield f"  OMP(omp simd{clause})"
        yield "  for (i64 i = strip; i < end; i++) {"
        for node in needed:
            kind = C_TYPES[node.dtype]
            value = self.load(node.args[0]) if node.op == "input" else self.entry(node)
            yield f"    const {kind} {self.names[node]} = {value};"
        for index, node in enumerate(sums):
            value = f"(double){self.names[node.inputs[0]]}"
            square = f"{value} * {value}" if node.op == "linalg_vector_norm" else value
            yield f"    r{index} += {square};"
        for column, node in written.items():
            if column != "param":
                yield f"    {self.at(column)} = {self.names[node]};"
        if "param" in written:
            yield f"    const T wide = {self.names[written['param']]};"
            yield f"    store({self.at('param')}, wide);"
            if self.form.compensated:
                yield f"    {self.at('compensation')} = lost(wide, load({self.at('param')}));"
        yield "  }}"
        for index, node in enumerate(sums):
            yield f"  sums[{self.reductions.index(node)}] = r{index};"
        yield "}"

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
        """A node's expression where scalars are in the precision of the arithmetic already."""

        def name(arg: Node) -> str:
            return self.names[arg]

        narrowed = [
            Node(a.op, a.args, self.graph.dtype, False, a.level)
            if isinstance(a, Node) and not a.entry and a.dtype != torch.bool
            else a
            for a in node.args
        ]
        renamed = dict(zip(map(id, narrowed), node.args, strict=True))
        copy = Node(node.op, tuple(narrowed), node.dtype, True, node.level)
        return expression(copy, lambda arg: name(renamed.get(id(arg), arg)))

    def text(self) -> str:
        """The whole file."""
        if any(
            node.entry and node.dtype not in (self.graph.dtype, torch.bool) for node in self.nodes
        ):
            raise Untraceable("entries in another precision than the parameter's")
        last = self.written()
        entry = self.entry_columns
        widths = ", ".join(f"sizeof({self.storage(column)})" for column in entry)
        changes = ", ".join(f"{column in last or column == 'compensation':d}" for column in entry)
        slots = ", ".join(str(self.slots[node]) for node in self.reductions) or "0"
        passes, stages = range(self.graph.passes), range(self.graph.stages)
        calls = [
            f"static void (*const {kind}_of[])({kinds}) = "
            f"{{{', '.join(f'{kind}{number}' for number in numbers)}}};"
            for kind, kinds, numbers in (
                ("scalars", "const double*, double, void* const*, double*", stages),
                ("entries", "i64, void* const*, const double*, T, T, double*", passes),
            )
        ]
        levels = ", ".join(str(node.level - 1) for node in self.reductions) or "0"
        repeat = all(self.graph.inputs[c].entry for c in self.columns if c != "compensation")
        head = [
            f"typedef {C_TYPES[self.graph.dtype]} T;",
            f"#define STORED {STORAGE[self.form.storage]}",
            f"#define PASSES {self.graph.passes}",
            f"#define STAGES {self.graph.stages}",
            f"#define COLUMNS {len(self.columns)}",
            f"#define ENTRY_COLUMNS {len(entry)}",
            f"#define SLOTS {max(len(self.slots), 1)}",
            f"#define SUMS {len(self.reductions)}",
            f"#define ALIKE {repeat and not self.reductions:d}",
        ]
        body = [line for n in stages for line in self.scalars(n)]
        body += [line for n in passes for line in self.entries(n)]
        tables = [
            f"static const int widths[] = {{{widths}}};",
            f"static const bool changes[] = {{{changes}}};",
            f"static const int sum_slots[] = {{{slots}}};",
            f"static const int sum_passes[] = {{{levels}}};",
            *calls,
        ]
        runtime = RUNTIME.read_text()
        first, second = runtime.split("// ---- kernel ----\n")
        return "\n".join([*head, first, *body, *tables, second])
