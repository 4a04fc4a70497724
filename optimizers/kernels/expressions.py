"""From one operation of torch to the C++ expression of the same arithmetic."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import torch

from optimizers.kernels.trace import Node, Untraceable

C_TYPES = {torch.float32: "float", torch.float64: "double", torch.bool: "bool"}

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
# what they are where the second argument is never NaN: one instruction instead of three
BOUNDED = {"maximum": "clamp_min", "minimum": "clamp_max"}
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


def entries_within(values: Any, bound: Any) -> bool:
    """Whether entries are bounded by a number that does not depend on any."""
    number = isinstance(bound, Node) and bound.kind == "scalar"
    return number and values.entry and not bound.level and not bound.local


def expression(node: Node, name: Callable[[Node], str]) -> str:
    """The C++ expression of one node; ``name`` gives those of its arguments.

    Raises Untraceable for operations that have none.
    """
    kind = C_TYPES[node.dtype]

    def cast(arg: Any, to: str) -> Any:
        if arg is None:
            return None
        if isinstance(arg, Node):
            return name(arg) if C_TYPES[arg.dtype] == to else f"({to}){name(arg)}"
        return f"({to}){literal(arg)}"

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
    if node.op in BOUNDED and entries_within(*node.args):
        return ARITHMETIC[BOUNDED[node.op]](*(cast(arg, kind) for arg in node.args))
    if node.op not in ARITHMETIC:
        raise Untraceable(f"{node.op} has no C++ form")
    return ARITHMETIC[node.op](*(cast(arg, kind) for arg in node.args))
