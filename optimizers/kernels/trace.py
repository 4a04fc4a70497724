"""From a rule to a graph: what one step computes, read off by running it once on tiny tensors.

The rule sees 1-D tensors where a real step has parameters and state, and 0-D float64 tensors where
it has numbers. Every torch operation it calls is written down: operations on 0-D tensors are
*scalars*, computed once per parameter, those on 1-D tensors are *entries*, computed once per entry,
and a norm or sum leads from entries to a scalar. A matrix may also have values that are one per row
or one per column (factors), kept with the dimension of size one. So may a stack of small matrices
(the weights of a convolution), and one per matrix. Whatever does not fit (products of matrices, a
branch on a number) raises `Untraceable`, and the rule runs eagerly.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from optimizers.core import DecayMode, Rule, State, Values, add_scaled, advance
from optimizers.parts import follow

# What a rule is traced with. The values do not matter, and neither may the sizes: what a rule makes
# of a size that it reads off would become a constant, so a second trace has to be the same. The
# sizes themselves are recognised, and therefore no numbers that a rule would say.
SHAPES = {
    "vector": ((37,), (41,)), "singles": ((37, 1, 1), (41, 1, 1)),
    "matrix": ((43, 37), (47, 41)), "stack": ((5, 43, 37), (7, 47, 41)),
}  # fmt: skip
STACKED = 1024  # entries of a matrix, of which some fit the cache side by side
SIZES = ("entries", "rows", "columns")
Kind = Literal["scalar", "row", "column", "matrix", "entry"]
REDUCTIONS = ("sum", "linalg_vector_norm")
ALIASES = ("view", "_unsafe_view", "alias")
DTYPES = (torch.float32, torch.float64, torch.bool)
CONSTANTS = ("zeros_like", "ones_like", "full_like", "scalar_tensor")


class Untraceable(Exception):
    """A rule does something that is not entry by entry, scalar, norm or sum."""


@dataclass(frozen=True, eq=False)
class Node:
    """One value, or one per entry, row, column or matrix. ``op`` is torch's name without overload,
    "input" or "size"; ``level`` how many reductions of all entries have to be complete before it,
    and ``local`` how many within its own matrix of a stack.
    """

    op: str
    args: tuple[Any, ...]  # nodes, numbers, None
    dtype: torch.dtype
    kind: Kind
    level: int
    local: int = 0

    @property
    def entry(self) -> bool:
        """Whether there is a value per entry."""
        return self.kind == "entry"

    @property
    def vector(self) -> bool:
        """Whether there is a value per row, column or matrix."""
        return self.kind in ("row", "column", "matrix")

    @property
    def reduction(self) -> bool:
        """Whether this is made of entries that only a pass over them all can see."""
        return self.op in REDUCTIONS and bool(self.args[0].entry)

    @property
    def inputs(self) -> list[Node]:
        """The nodes among the arguments."""
        return [arg for arg in self.args if isinstance(arg, Node)]


@dataclass(frozen=True)
class Graph:
    """``inputs`` by name: "grad", "param", each state, "t", and "hyper.NAME"; ``outputs``: "param",
    each state that changes, "sum.NAME" for sums a `ModelHook` wants.
    """

    dtype: torch.dtype
    inputs: Mapping[str, Node]
    outputs: Mapping[str, Node]
    shape: str = "vector"  # of `SHAPES`

    @property
    def hypers(self) -> list[str]:
        """Names of the numbers, in the order in which a kernel wants them."""
        return [name[6:] for name in self.inputs if name.startswith("hyper.")]

    def walk(self) -> Iterator[Node]:
        """Every node that the outputs need, each after its arguments."""
        seen: set[Node] = set()
        stack = [(node, False) for node in reversed([*self.outputs.values()])]
        while stack:
            node, ready = stack.pop()
            if node in seen:
                continue
            if ready or not node.inputs:
                seen.add(node)
                yield node
            else:
                stack.append((node, True))
                stack.extend((arg, False) for arg in reversed(node.inputs))

    def text(self) -> str:
        """The graph in a form that two graphs can be compared by."""
        names: dict[Node, str] = {}
        lines = []
        for node in self.walk():
            args = [names[arg] if isinstance(arg, Node) else repr(arg) for arg in node.args]
            names[node] = f"v{len(names)}"
            lines.append(f"{names[node]}: {node.dtype} {node.kind} = {node.op}({args})")
        return "\n".join([*lines, *(f"{key}: {names[v]}" for key, v in self.outputs.items())])

    @property
    def passes(self) -> int:
        """How often the entries have to be read."""
        nodes = list(self.walk())
        sums = [node.level for node in nodes if node.reduction]
        written = [1 + node.level for node in self.outputs.values() if node.entry]
        return max(sums + written, default=1)

    @property
    def stages(self) -> int:
        """How often scalars are computed: before every pass, and after the last if need be."""
        return max(self.passes, *(1 + node.level for node in self.outputs.values()))


class Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Writes down every operation on tensors that it knows."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.kinds: dict[tuple[int, ...], Kind] = {(): "scalar", shape: "entry"}
        self.stacked = len(shape) > 2 and shape[-1] > 1
        names: tuple[str, ...] = SIZES[:1]
        if len(shape) > 1 and shape[-1] > 1:
            names = SIZES
            *stack, rows, columns = shape
            whole: Kind = "matrix" if self.stacked else "scalar"
            self.kinds |= {(*stack, rows, 1): "row", (*stack, 1, columns): "column"}
            self.kinds[(*stack, 1, 1)] = whole
        self.sizes = {
            size: Node("size", (name,), torch.float64, "scalar", 0)
            for size, name in zip((prod(shape), *shape[-2:]), names, strict=False)
        }
        self.flat = (prod(shape),)
        self.nodes: dict[int, Node] = {}
        self.alive: list[Tensor] = []  # an id names a tensor only while it lives

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # the alternative imports torch._dynamo, which takes as long as torch itself

    def add(self, tensor: Tensor, op: str, args: tuple[Any, ...] = ()) -> Node:
        """Make a node for a tensor's value."""
        kind = self.kinds.get(tuple(tensor.shape))
        if kind is None or tensor.dtype not in DTYPES:
            raise Untraceable(f"{op} gives {tensor.dtype} of shape {tuple(tensor.shape)}")
        inputs = [arg for arg in args if isinstance(arg, Node)]
        level = max((node.level for node in inputs), default=0)
        local = max((node.local for node in inputs), default=0)
        if op in REDUCTIONS and self.stacked and kind == "scalar" and not inputs[0].entry:
            raise Untraceable(f"{op} over all matrices of a stack")
        if op in REDUCTIONS and inputs[0].entry:
            within = self.stacked and kind != "scalar"
            level, local = (level, local + 1) if within else (level + 1, 0)
        return self.keep(tensor, Node(op, args, tensor.dtype, kind, level, local))

    def keep(self, tensor: Tensor, node: Node) -> Node:
        """Remember what a tensor's value is."""
        self.nodes[id(tensor)] = node
        self.alive.append(tensor)
        return node

    def argument(self, arg: Any) -> Any:
        """What a node keeps of an argument."""
        if isinstance(arg, Tensor):
            return self.of(arg)
        if isinstance(arg, int | float) and not isinstance(arg, bool) and arg in self.sizes:
            return self.sizes[int(arg)]
        return arg

    def of(self, tensor: Tensor) -> Node:
        """The node of a tensor that was seen before."""
        try:
            return self.nodes[id(tensor)]
        except KeyError:
            raise Untraceable("a tensor that comes from outside the rule") from None

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> object:
        """Run one operation and record it."""
        op, kwargs = func.__name__.split(".")[0], kwargs or {}
        result = func(*args, **kwargs)
        if not isinstance(result, Tensor):
            raise Untraceable(f"{op} looks at the value of a tensor")
        if op in CONSTANTS:
            fill = {"zeros_like": 0.0, "ones_like": 1.0}.get(op)
            self.add(result, "constant", (args[-1] if fill is None else fill,))
            return result
        if op in REDUCTIONS:
            self.reduce(result, op, *args, **kwargs)
            return result
        if op == "dot":
            product = replace(self.of(args[0]), op="mul", args=(self.of(args[0]), self.of(args[1])))
            self.keep(result, Node("sum", (product,), result.dtype, "scalar", product.level + 1))
            return result
        if op in ALIASES and tuple(result.shape) in (self.flat, args[0].shape):
            self.keep(result, self.of(args[0]))
            return result
        seen = [self.argument(arg) for arg in args]
        if op.endswith("_") and result is args[0]:
            op = op[:-1]
            if seen[0].op == "input":
                raise Untraceable(f"{op} writes into what the rule was given")
        if op == "_to_copy":
            kwargs = {}  # the result's dtype says it
        extra = [kwargs[key] for key in ("alpha", "value", "min", "max") if key in kwargs]
        if len(extra) != len(kwargs):
            raise Untraceable(f"{op} with {', '.join(kwargs)}")
        if op == "clamp" and "max" in kwargs and "min" not in kwargs and len(args) == 1:
            extra.insert(0, None)
        if any(isinstance(arg, list | tuple | torch.dtype) for arg in seen):
            raise Untraceable(f"{op} is not entry by entry")
        self.add(result, op, (*seen, *extra))
        return result

    def reduce(self, result: Tensor, op: str, values: Tensor, *how: Any, **kwargs: Any) -> None:
        """Record a norm or sum over everything, or over one dimension of a matrix, which stays."""
        over, node = [arg for arg in how if arg != 2], self.of(values)
        whole = not over and result.dim() == 0
        along = len(over) == 2 and len(over[0]) == 1 and over[1] is True and values.dim() > 1
        if kwargs or not (whole or along):
            raise Untraceable(f"{op} with {how} {kwargs}")
        if node.vector and self.kinds.get(tuple(result.shape)) == node.kind:
            self.keep(result, node)  # over the dimension that has one value
        else:
            self.add(result, op, (node,))


def shape_of(rule: Rule, shape: Sequence[int]) -> str:
    """Which of `SHAPES` stands for a parameter's: the rule may ask for rows and columns.

    "singles" are matrices of one entry each, such as the weights of a 1 x 1 convolution.
    """
    if rule.entrywise or len(shape) < 2:
        return "vector"
    if len(shape) > 2 and tuple(shape[-2:]) == (1, 1):
        return "singles"
    return "stack" if is_stack(shape) else "matrix"


def is_stack(shape: Sequence[int]) -> bool:
    """Whether a parameter is a stack of small matrices, as the weights of a convolution are."""
    return len(shape) > 2 and prod(shape[-2:]) <= STACKED


@dataclass(frozen=True)
class Layout:
    """What a trace depends on beside the rule: the dtype of the arithmetic, the state and its 0-D
    tensors' dtypes, and which of `SHAPES` the parameter has.
    """

    dtype: torch.dtype
    state: tuple[tuple[str, Kind, torch.dtype], ...]
    shape: str = "vector"

    @classmethod
    def of(
        cls, rule: Rule, values: Values, dtype: torch.dtype, state: State, shape: Sequence[int]
    ) -> Layout:
        """The layout of one real parameter of this shape and of its state."""
        known = shape_of(rule, shape)
        shape = SHAPES[known][0]
        fresh = rule.state_layout(shape, dtype, values)
        kinds = Recorder(shape).kinds
        found: list[tuple[str, Kind, torch.dtype]] = []
        for key, value in state.items():
            kind = kinds.get(tuple(fresh[key].shape)) if key in fresh else "entry"
            if kind is None:
                raise Untraceable(f"{key} is neither factor nor entries")
            found.append((key, kind, value.dtype if kind == "scalar" else dtype))
        return cls(dtype, tuple(found), known)


Body: TypeAlias = Callable[[Tensor, Tensor, State, Values, Tensor], Mapping[str, Tensor]]


def run(
    layout: Layout,
    values: Values,
    numbers: Sequence[str],
    body: Body,
) -> Graph:
    """Trace ``body(grad, param, state, hyper, t)`` with ``numbers`` of the values as tensors."""
    first, second = (
        run_shape(shape, layout, values, numbers, body) for shape in SHAPES[layout.shape]
    )
    if first.text() != second.text():
        raise Untraceable("the rule depends on the size of the parameter")
    return first


def run_shape(
    shape: tuple[int, ...], layout: Layout, values: Values, numbers: Sequence[str], body: Body
) -> Graph:
    """One trace with a parameter of this shape."""
    recorder = Recorder(shape)
    inputs: dict[str, Tensor] = {}

    shapes: dict[Kind, tuple[int, ...]] = {kind: own for own, kind in recorder.kinds.items()}
    shapes["scalar"] = ()

    def entry(name: str, kind: Kind = "entry", dtype: torch.dtype = layout.dtype) -> Tensor:
        return inputs.setdefault(name, torch.full(shapes[kind], 0.5, dtype=dtype))

    def number(name: str, dtype: torch.dtype = torch.float64) -> Tensor:
        return inputs.setdefault(name, torch.tensor(0.5, dtype=dtype))

    grad, param, t = entry("grad"), entry("param"), number("t")
    state = {key: entry(key, kind, dtype) for key, kind, dtype in layout.state}
    hyper = Values(**{**vars(values), **{name: number(f"hyper.{name}") for name in numbers}})
    for name, tensor in inputs.items():
        recorder.add(tensor, "input", (name,))
    try:
        with recorder:
            results = body(grad, param, state, hyper, t)
    except Exception as error:  # whatever a rule cannot do with these, eager can or will say
        raise Untraceable(f"{type(error).__name__}: {error}") from error
    nodes = {name: recorder.of(tensor) for name, tensor in inputs.items()}
    outputs = {name: recorder.of(tensor) for name, tensor in results.items()}
    changed = {name: node for name, node in outputs.items() if node is not nodes.get(name)}
    return Graph(layout.dtype, nodes, changed, layout.shape)


def numbers_of(rule: Rule, values: Values) -> list[str]:
    """Which of the values are numbers, not options."""
    return [name for name in vars(values) if name not in rule.options]


def step_graph(rule: Rule, mode: DecayMode, layout: Layout, values: Values) -> Graph:
    """One whole step: `optimizers.core.advance`."""

    def body(
        grad: Tensor, param: Tensor, state: State, hyper: Values, t: Tensor
    ) -> dict[str, Tensor]:
        new, state = advance(rule, mode, grad, param, state, hyper, t)
        return {"param": new, **state}

    return run(layout, values, numbers_of(rule, values), body)


def before_graph(rule: Rule, mode: DecayMode, layout: Layout, values: Values) -> Graph:
    """What leads to a rule's core; the values for it take the place of the parameter."""
    core = rule.core
    if core is None or mode == "l2":
        raise Untraceable(f"{rule.name} has no core, or decays before it")

    def body(
        grad: Tensor, param: Tensor, state: State, hyper: Values, t: Tensor
    ) -> dict[str, Tensor]:
        inside, state = core.before(grad, param, state, hyper, t)
        return {"param": inside, **state}

    return run(layout, values, numbers_of(rule, values), body)


def after_graph(rule: Rule, mode: DecayMode, layout: Layout, values: Values) -> Graph:
    """What becomes of a core's direction, which takes the place of the gradient."""
    return step_graph(replace(rule, update=follow), mode, replace(layout, state=()), values)


def share_graph(rule: Rule, mode: DecayMode, layout: Layout, values: Values) -> Graph:
    """What a rule of scope "model" sums up before any parameter moves."""
    hook = rule.model
    if hook is None:
        raise Untraceable(f"{rule.name} shares nothing")

    def body(
        grad: Tensor, param: Tensor, state: State, hyper: Values, t: Tensor
    ) -> dict[str, Tensor]:
        if mode == "l2":
            grad = add_scaled(grad, param, hyper.weight_decay)
        sums, state = hook.partial(grad, param, state, hyper, t)
        return {**state, **{f"sum.{name}": value for name, value in sums.items()}}

    return run(layout, values, numbers_of(rule, values), body)
