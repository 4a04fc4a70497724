"""The C++ of a graph over stacks of small matrices, such as the weights of a convolution.

A matrix of nine entries is no loop worth having, but a thousand of them side by side are: a block
of matrices is turned so that the first entries of all come one after another, then the second ones,
and a value per row, column or matrix is a value per step of the same loop. Sums within a matrix
need nothing from outside the block, so a pass makes them again instead of waiting for all blocks.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import chain, groupby

from optimizers.kernels.expressions import C_TYPES, expression
from optimizers.kernels.source import ENTRIES, KINDS, Writer
from optimizers.kernels.trace import REDUCTIONS, Node

# How many values of a kind a matrix has; ``size`` is as `trace.SIZES`.
COUNTS = {"row": "size[1]", "column": "size[2]", "matrix": "1"}
# What functions for values per row, column and matrix get: how many matrices, the sizes, the slots,
# the values, and what the loops over entries summed up.
VALUES = "i64 n, const i64* size, const double* s, T* const* v, double* const* r"


def is_fold(node: Node) -> bool:
    """Whether a value is made of those of all rows or columns of a matrix."""
    return node.op in REDUCTIONS and not node.reduction


class StackWriter(Writer):
    """Writes the C++ of a graph whose shape is "stack"; ``stack.h`` runs it over blocks."""

    stack = True

    def slotted(self, node: Node) -> bool:
        """Scalars alone are in slots."""
        return node.kind == "scalar"

    def along(self, node: Node) -> bool:
        """Every value of a matrix comes along with the matrices."""
        return node.vector

    def vector(self, node: Node, number: int) -> Iterable[str]:
        """Nothing: they are made block by block."""
        return ()

    def vector_out(self, node: Node, column: str) -> Iterable[str]:
        """Nothing: they are written block by block."""
        return ()

    @property
    def locals(self) -> int:
        """How often a pass goes over the entries of a block."""
        return 1 + max(node.local for node in self.nodes)

    def wanted(self, number: int) -> list[Node]:
        """All nodes that a pass needs, also those that earlier passes made."""
        last = number == self.graph.passes - 1
        goals = [n for n in self.reductions if not n.vector and n.level == number + 1]
        goals += [n for n in self.graph.outputs.values() if last and (n.entry or n.vector)]
        seen: set[Node] = set()
        while goals:
            node = goals.pop()
            if node not in seen:
                seen.add(node)
                goals += [a for a in node.inputs if a.entry or a.vector]
        return [node for node in self.nodes if node in seen]

    def leading(self, goals: Sequence[Node]) -> list[Node]:
        """The entries that lead to these, in their order."""
        seen: set[Node] = set()
        waiting = list(goals)
        while waiting:
            node = waiting.pop()
            if node.entry and node not in seen:
                seen.add(node)
                waiting += node.inputs
        return [node for node in self.nodes if node in seen]

    def walks(self) -> Iterable[str]:
        """The functions of all passes and what is local in them, and a table of them."""
        table = []
        for number in range(self.graph.passes):
            wanted = self.wanted(number)
            for local in range(self.locals):
                sums = [
                    node
                    for node in wanted
                    if node.reduction and node.inputs[0].local == local
                    and (node.vector or node.level == number + 1)
                ]  # fmt: skip
                last = (number, local) == (self.graph.passes - 1, self.locals - 1)
                written = self.written() if last else {}
                needed = self.leading([*(n.inputs[0] for n in sums), *written.values()])
                if not (sums or written):
                    table.append("nullptr")
                    continue
                table.append(f"entries{number}_{local}")
                yield from self.entries(table[-1], needed, written, sums)
        yield f"static void (*const entries_of[])({ENTRIES}) = {{{', '.join(table)}}};"
        for local in range(self.locals):
            yield from self.values(local)
        names = ", ".join(f"values{local}" for local in range(self.locals))
        yield f"static void (*const values_of[])({VALUES}) = {{{names}}};"

    def values(self, local: int) -> Iterable[str]:
        """The function for values per row, column and matrix, once so many loops are done."""
        yield f"static void values{local}({VALUES}) {{"
        made = [n for n in self.vectors if n.local == local and n.op != "input"]
        for scalar in dict.fromkeys(a for node in made for a in node.inputs if a.kind == "scalar"):
            kind = C_TYPES[scalar.dtype]
            yield f"  const {kind} {self.names[scalar]} = ({kind})s[{self.slots[scalar]}];"
        for (kind, fold), group in groupby(made, key=lambda node: (node.kind, is_fold(node))):
            nodes = list(group)
            yield from chain(*map(self.fold, nodes)) if fold else self.together(kind, nodes)
        yield "}"

    def fold(self, node: Node) -> Iterable[str]:
        """The sum of each matrix's values per row or column."""
        (vector,) = node.inputs
        total = f"v[{self.vectors.index(node)}]"
        term = f"v[{self.vectors.index(vector)}][k * n + i]"
        norm = node.op == "linalg_vector_norm"
        term = f"{term} * {term}" if norm else term
        yield f"  __builtin_memset({total}, 0, n * sizeof(T));"
        yield f"  for (i64 k = 0; k < {COUNTS[vector.kind]}; k++)"
        yield "    OMP(omp simd)"
        yield f"    for (i64 i = 0; i < n; i++) {total}[i] += {term};"
        if norm:
            yield f"  for (i64 i = 0; i < n; i++) {total}[i] = root({total}[i]);"

    def together(self, kind: str, nodes: Sequence[Node]) -> Iterable[str]:
        """One loop for nodes of a kind, of which it stores what others read."""
        inside = set(nodes)
        arguments = dict.fromkeys(a for node in nodes for a in node.inputs if a.vector)
        outside = [arg for arg in arguments if arg not in inside]
        readers = [*self.graph.outputs.values()]
        readers += [arg for node in self.nodes if node not in inside for arg in node.inputs]
        stored = [node for node in nodes if node in readers]
        yield f"  for (i64 k = 0; k < {COUNTS[kind]}; k++) {{"
        for node in (*outside, *stored):
            const = "const " if node in outside else ""
            array = f"v[{self.vectors.index(node)}]{' + k * n' if node.kind == kind else ''}"
            yield f"    {const}T* __restrict p{self.names[node]} = {array};"
        for node in (node for node in nodes if node.reduction):
            array = f"r[{self.reductions.index(node)}] + k * n"
            yield f"    const double* __restrict r{self.names[node]} = {array};"
        yield "    OMP(omp simd)"
        yield "    for (i64 i = 0; i < n; i++) {"
        for node in outside:
            if node.kind in (kind, "matrix"):
                yield f"      const T {self.names[node]} = p{self.names[node]}[i];"
        for node in nodes:
            yield f"      const T {self.names[node]} = (T)({self.value(node)});"
        for node in stored:
            yield f"      p{self.names[node]}[i] = {self.names[node]};"
        yield "    }"
        yield "  }"

    def value(self, node: Node) -> str:
        """One value of a node, number ``k`` of matrix ``i``."""
        if not node.reduction:
            return expression(node, self.names.__getitem__)
        total = f"r{self.names[node]}[i]"
        return f"root({total})" if node.op == "linalg_vector_norm" else total

    def vector_tables(self) -> Iterable[str]:
        """Of each value per row, column or matrix its kind, and which columns hold it."""
        kinds, states, results = [], [], []
        for node in self.vectors:
            outputs = [name for name, new in self.graph.outputs.items() if new is node]
            kinds.append(KINDS.index(node.kind))
            states.append(self.columns.index(node.args[0]) if node.op == "input" else -1)
            results.append(self.columns.index(outputs[0]) if outputs else -1)
        yield f"#define LOCALS {self.locals}"
        for name, numbers in (("kinds", kinds), ("states", states), ("results", results)):
            yield f"static const int vector_{name}[] = {{{', '.join(map(str, numbers))}}};"
