"""From a rule to a graph: what one step computes, read off by running it once on tiny tensors.

The rule sees 1-D tensors where a real step has parameters and state, and 0-D float64 tensors where
it has numbers. Every torch operation it calls is written down: operations on 0-D tensors are
*scalars*, computed once per parameter, those on 1-D tensors are *entries*, computed once per entry,
and a norm or sum leads from entries to a scalar. Whatever does not fit (matrices, a branch on a
number) raises `Untraceable`, and the rule runs eagerly.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from optimizers.core import DecayMode, Rule, State, Values, add_scaled, advance

# What a rule is traced with. The values do not matter, and neither may the sizes: a number of
# entries that a rule reads off would become a constant, so a second trace has to be the same.
SHAPES = {False: ((2,), (3,)), True: ((3, 2), (5, 4))}
REDUCTIONS = ("sum", "linalg_vector_norm")
DTYPES = (torch.float32, torch.float64, torch.bool)
CONSTANTS = ("zeros_like", "ones_like", "full_like", "scalar_tensor")


class Untraceable(Exception):
    """A rule does something that is not entry by entry, scalar, norm or sum."""


@dataclass(frozen=True, eq=False)
class Node:
    """One value. ``op`` is torch's name without overload, or "input"; ``level`` how many reductions
    have to be complete before it can be computed.
    """

    op: str
    args: tuple[Any, ...]  # nodes, numbers, None
    dtype: torch.dtype
    entry: bool
    level: int

    @property
    def reduction(self) -> bool:
        """Whether this is a scalar made of entries."""
        return self.op in REDUCTIONS

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
            lines.append(f"{names[node]}: {node.dtype} {node.entry} = {node.op}({args})")
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
        self.shape = shape
        self.nodes: dict[int, Node] = {}
        self.alive: list[Tensor] = []  # an id names a tensor only while it lives

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # the alternative imports torch._dynamo, which takes as long as torch itself

    def add(self, tensor: Tensor, op: str, args: tuple[Any, ...] = ()) -> Node:
        """Make a node for a tensor's value."""
        if tensor.shape not in ((), self.shape) or tensor.dtype not in DTYPES:
            raise Untraceable(f"{op} gives {tensor.dtype} of shape {tuple(tensor.shape)}")
        inputs = [arg for arg in args if isinstance(arg, Node)]
        level = max((node.level for node in inputs), default=0) + (op in REDUCTIONS)
        node = Node(op, args, tensor.dtype, tensor.dim() > 0, level)
        self.nodes[id(tensor)] = node
        self.alive.append(tensor)
        return node

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
        if op in REDUCTIONS and (len(args) > 1 and tuple(args[1:]) != (2,)):
            raise Untraceable(f"{op} with {args[1:]}")
        seen = [self.of(arg) if isinstance(arg, Tensor) else arg for arg in args]
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


@dataclass(frozen=True)
class Layout:
    """What a trace depends on beside the rule: the dtype of the arithmetic, the state and its 0-D
    tensors' dtypes, and whether the parameter is a matrix (for rules of scope "tensor").
    """

    dtype: torch.dtype
    state: tuple[tuple[str, torch.dtype | None], ...]  # None: one value per entry
    matrix: bool = False

    @classmethod
    def of(cls, rule: Rule, values: Values, dtype: torch.dtype, state: State, dims: int) -> Layout:
        """The layout of one real parameter with ``dims`` dimensions and of its state."""
        matrix = rule.scope == "tensor" and dims > 1
        fresh = rule.state(torch.empty(SHAPES[matrix][0], dtype=dtype, device="meta"), values)
        scalars = (
            (key, value.dtype if key in fresh and not fresh[key].dim() else None)
            for key, value in state.items()
        )
        return cls(dtype, tuple(scalars), matrix)


Body: TypeAlias = Callable[[Tensor, Tensor, State, Values, Tensor], Mapping[str, Tensor]]


def run(
    layout: Layout,
    values: Values,
    numbers: Sequence[str],
    body: Body,
) -> Graph:
    """Trace ``body(grad, param, state, hyper, t)`` with ``numbers`` of the values as tensors."""
    first, second = (
        run_shape(shape, layout, values, numbers, body) for shape in SHAPES[layout.matrix]
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

    def entry(name: str) -> Tensor:
        return inputs.setdefault(name, torch.full(shape, 0.5, dtype=layout.dtype))

    def number(name: str, dtype: torch.dtype = torch.float64) -> Tensor:
        return inputs.setdefault(name, torch.tensor(0.5, dtype=dtype))

    grad, param, t = entry("grad"), entry("param"), number("t")
    state = {
        key: entry(key) if dtype is None else number(key, dtype) for key, dtype in layout.state
    }
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
    return Graph(layout.dtype, nodes, changed)


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
