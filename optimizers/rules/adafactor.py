"""Adafactor: Adam's second moment kept as one row and one column per matrix.

Shazeer, Stern, "Adafactor: Adaptive Learning Rates with Sublinear Memory Cost", ICML 2018,
https://arxiv.org/abs/1804.04235. As in torch: ``lr`` caps the relative step and scales the
decoupled weight decay, and eps1 bounds the second moment from below instead of being added to each
square. Without eps1 it is the precision of the arithmetic, of each parameter for itself (torch's
loop takes the first parameter's for all).
"""

from __future__ import annotations

from collections.abc import Sequence
from math import inf, isfinite, nan, prod
from typing import TypeAlias

import torch
from torch import Tensor

from optimizers.core import (
    Hyper,
    Rule,
    Scalar,
    State,
    Values,
    at_least,
    ema,
    where,
)
from optimizers.parts import Blocks, Known
from optimizers.rules.ranges import epsilon, learning_rate, weight_decay

TOTALS = ("size", "param", "scaled_sum")  # of all matrices of a parameter together
Members: TypeAlias = tuple[Tensor, Tensor, Tensor]
SMALL = 64  # entries of a matrix, below which operations on its rows are slower than products


def at_most_(values: Tensor, bound: Scalar) -> Tensor:
    """``min(values, bound)`` per entry, for a temporary that may be overwritten."""
    if isinstance(bound, Tensor):
        return torch.minimum(values, bound)
    return values.clamp_max_(bound)  # clamp_ has no rule for vmap


def at_least_(values: Tensor, bound: Scalar, space: Tensor | None) -> Tensor:
    """As `at_least`, in memory that is given."""
    if isinstance(bound, Tensor) or space is None:
        return at_least(values, bound)
    return torch.clamp(values, min=bound, out=space)


def larger(value: Scalar, bound: Scalar) -> Scalar:
    """``max(value, bound)``."""
    return at_least(value, bound) if isinstance(value, Tensor) else max(value, bound)


def ema_(old: Tensor, new: Tensor, beta: Scalar) -> Tensor:
    """As `ema`, in place."""
    return old.copy_(ema(old, new, beta)) if isinstance(beta, Tensor) else old.lerp_(new, 1 - beta)


def square_sum(values: Tensor) -> Tensor:
    """The sum of all squares; twice as fast as a norm."""
    flat = values.reshape(-1)
    return torch.dot(flat, flat)


def is_small(tensor: Tensor) -> bool:
    """Whether a tensor is many small matrices, as the weights of a convolution are."""
    return tensor.dim() > 2 and 1 < tensor.shape[-1] * tensor.shape[-2] <= SMALL


def is_single(tensor: Tensor) -> bool:
    """Whether every matrix is one entry, as in a convolution of single pixels."""
    return tensor.dim() > 2 and tensor.shape[-2:] == (1, 1)


def members(like: Tensor) -> Members | None:
    """Which row, and which column, each entry of a small matrix belongs to: ones among zeros.

    Sums over rows and columns, and values per row and column spread over the entries, are products
    with these. Of shapes ``(entries, rows)`` and ``(entries, columns)``; the third, of shape
    ``(rows, rows)``, gives every row the mean of all. None for other matrices.
    """
    if not is_small(like):
        return None
    rows, columns = like.shape[-2:]
    row, column = (torch.eye(n, dtype=like.dtype, device=like.device) for n in (rows, columns))
    mean = torch.full_like(row, 1 / rows)
    spread = row.unsqueeze(1).expand(-1, columns, -1), column.expand(rows, -1, -1)
    return spread[0].reshape(-1, rows), spread[1].reshape(-1, columns), mean


def room(known: Known, name: str, shape: Sequence[int]) -> Tensor | None:
    """Memory of this shape, if there is any of that name."""
    memory = known.get(name)
    return None if memory is None else memory.view(-1)[: prod(shape)].view(shape)


def square_sums(squares: Tensor, own: Members | None, known: Known) -> tuple[Tensor, Tensor]:
    """The sums of each row and of each column, with the dimensions that go kept."""
    if is_single(squares):
        return squares, squares
    *leading, rows, columns = squares.shape
    shapes = (*leading, rows, 1), (*leading, 1, columns)
    first, second = (
        room(known, name, shape) for name, shape in zip(("spare", "few"), shapes, strict=True)
    )
    if own is None:
        return (
            torch.sum(squares, dim=-1, keepdim=True, out=first),
            torch.sum(squares, dim=-2, keepdim=True, out=second),
        )
    flat = squares.reshape(-1, rows * columns)
    by_row, by_column = (
        torch.mm(flat, some, out=None if out is None else out.view(-1, some.shape[1]))
        for some, out in zip(own[:2], (first, second), strict=True)
    )
    return by_row.reshape(shapes[0]), by_column.reshape(shapes[1])


def mean(total: Tensor, count: float, out: Tensor | None = None) -> Tensor:
    """A sum over so many entries, which are often one, as a mean."""
    return total if count == 1 else torch.div(total, count, out=out)


def mean_of_rows(row_var: Tensor, own: Members | None, out: Tensor | None) -> Tensor:
    """The mean of a value per row, for every matrix or, of small ones, for every row."""
    if own is None:
        return mean(row_var.sum(dim=-2, keepdim=True), row_var.shape[-2])
    same = own[2]
    flat = None if out is None else out.view(-1, len(same))
    return torch.mm(row_var.reshape(-1, len(same)), same, out=flat).reshape(row_var.shape)


def spread(values: Tensor, own: Tensor, out: Tensor | None) -> Tensor:
    """Values per row or column of small matrices for each entry; may write over them."""
    most = torch.finfo(values.dtype).max  # infinity times zero would be NaN
    few = values.clamp_max_(most).reshape(-1, own.shape[1])
    return torch.mm(few, own.mT, out=None if out is None else out.view(-1, len(own)))


def outer(by_row: Tensor, by_column: Tensor, own: Members | None, known: Known) -> Tensor:
    """The product of a value per row and one per column for each entry; may write over both."""
    space, shape = known.get("space"), (*by_row.shape[:-1], by_column.shape[-1])
    if own is None:
        return torch.mul(by_row, by_column, out=space)
    first = spread(by_row, own[0], space)
    return first.mul_(spread(by_column, own[1], room(known, "spare", shape))).reshape(shape)


def factors(
    grad: Tensor, param: Tensor, state: State, hyper: Values, t: Scalar, known: Known
) -> Known:
    """What these rows say of sizes and of the second moment."""
    found: Known = {"size": float(grad.numel()), "param": square_sum(param)}
    kept = "whole" in known  # the gradient, for the direction
    squares = torch.mul(grad, grad, out=known.get("space") if kept else grad)
    beta, follow = 1 - t**hyper.beta2_decay, ema_ if "own" in known else ema
    if grad.dim() < 2:
        found["variance"] = follow(state["variance"], squares, beta)
        return found if kept else {**found, "squares": squares}
    rows, columns = map(float, grad.shape[-2:])
    own = found["members"] = members(grad)
    row_sum, column_sum = square_sums(squares, own, known)
    stacked = "spare" in known  # and then the sums are needed for nothing else
    new = mean(row_sum, columns, row_sum if stacked else None)
    row_var = found["row_var"] = follow(state["row_var"], new, beta)
    if grad.dim() > 2:
        new = mean(column_sum, rows, column_sum if stacked else None)
        found["col_var"] = follow(state["col_var"], new, beta)
        return found if kept else {**found, "squares": squares}
    found |= {"rows": rows, "column_sum": column_sum}
    found["row_sum"] = row_var.sum(dim=-2, keepdim=True)
    return found if kept else {**found, **for_unbounded(squares, row_sum, row_var)}


def for_unbounded(squares: Tensor, row_sum: Tensor, row_var: Tensor) -> Known:
    """What rows say to `unbounded`: squares over the rows' factor, and the least of that."""
    weights = at_least(row_var, torch.finfo(row_var.dtype).tiny).reciprocal_()
    return {
        "weighted": weights.mT @ squares,
        "least": torch.where(row_sum != 0, row_var, inf).min(),
    }


def least_root(dtype: torch.dtype, hyper: Values) -> Scalar:
    """eps1, of which NaN stands for None."""
    eps1: Scalar = where(hyper.eps1 != hyper.eps1, torch.finfo(dtype).eps, hyper.eps1)
    return eps1


def in_common(state: State, hyper: Values, t: Scalar, known: Known) -> Known:
    """What all rows of a matrix have in common: its columns' factor, and the mean of the rows'."""
    new, rows = (mean(known[key], known["rows"]) for key in ("column_sum", "row_sum"))
    col_var = ema(state["col_var"], new, 1 - t**hyper.beta2_decay)
    size = at_least(rows, least_root(rows.dtype, hyper))
    return {"size_of_rows": size, "columns": col_var, "by_column": col_var.rsqrt()}


def unbounded(state: State, hyper: Values, t: float, known: Sequence[Known]) -> Known | None:
    """The squares of a matrix's scaled gradient, if eps1 is no bound on any entry but zeros.

    They are sums over rows and then over columns, for which no entry has to be seen again. What
    does not differ between rows are numbers then.
    """
    own = known[0]
    if "weighted" not in own or not own["row_var"].is_cpu:  # others would be waited for
        return None
    common = in_common(state, hyper, t, own)
    eps1, tiny = least_root(own["row_var"].dtype, hyper), torch.finfo(own["row_var"].dtype).tiny
    column = torch.where(own["column_sum"] != 0, common["columns"], inf).min()
    total = (own["weighted"] / at_least(common["columns"], tiny)).sum()
    few = [common["size_of_rows"].squeeze(), column, total]
    size, least, value, *row = torch.stack([*few, *(k["least"] for k in known)]).tolist()
    if not (eps1 > 0 and isfinite(value) and min(row) >= tiny):
        return None
    if not min(row) * least >= eps1 * eps1 * size:
        return None
    return {**common, "size_of_rows": size, "scaled_sum": value * size}


def inverse_root(
    grad: Tensor, state: State, hyper: Values, t: Scalar, known: Known, factor: Scalar = 1.0
) -> tuple[Tensor, State, Known]:
    """A factor over the root of the second moment, the new state, and what a matrix has in common.

    Roots of the factors instead of factors of the root: rows and columns are few.
    """
    eps1 = least_root(grad.dtype, hyper)
    if grad.dim() < 2:
        root = at_least_(known["variance"], eps1 * eps1, known.get("space")).rsqrt_().mul_(factor)
        return root, {"variance": known["variance"]}, {}
    row_var = known["row_var"]
    bound = where(eps1 > 0, factor / where(eps1 > 0, eps1, 1.0), inf)
    if grad.dim() == 2:
        common = known if "by_column" in known else in_common(state, hyper, t, known)
        by_row = (row_var / common["size_of_rows"]).rsqrt_().mul_(factor)
        root = at_most_(outer(by_row, common["by_column"], None, known), bound)
        return root, {"row_var": row_var, "col_var": common["columns"]}, common
    col_var = known["col_var"]
    if is_single(grad):
        size = at_least_(row_var, eps1, known.get("space"))
        out = room(known, "spare", grad.shape)
        root = torch.div(row_var, size, out=out).mul_(col_var).rsqrt_().mul_(factor)
    else:
        own = known["members"] if "members" in known else members(grad)
        out, few = room(known, "spare", row_var.shape), room(known, "few", col_var.shape)
        rows = mean_of_rows(row_var, own, out)
        by_row = torch.div(row_var, at_least_(rows, eps1, None if own is None else out), out=out)
        root = outer(by_row.rsqrt_().mul_(factor), torch.rsqrt(col_var, out=few), own, known)
    return at_most_(root, bound), {"row_var": row_var, "col_var": col_var}, {}


def length(
    grad: Tensor, param: Tensor, state: State, hyper: Values, t: Scalar, known: Known
) -> Known:
    """The squares of the scaled gradient."""
    if "squares" in known:
        root, _, _ = inverse_root(grad, state, hyper, t, known)
        return {"scaled_sum": torch.dot(known["squares"].mul_(root).view(-1), root.view(-1))}
    root, new, common = inverse_root(grad, state, hyper, t, known)
    direction = root.mul_(grad)
    found: Known = {"scaled_sum": square_sum(direction)}
    if "whole" in known:
        return {**found, "scaled": (direction, new)}
    return found | {key: common[key] for key in COMMON}


def finish(
    grad: Tensor, param: Tensor, state: State, hyper: Values, t: Scalar, known: Known
) -> tuple[Tensor, State]:
    """The scaled gradient, clipped to size d, as a part of the parameter's own size."""
    clipping = larger((known["scaled_sum"] / known["size"]) ** 0.5 / hyper.d, 1.0)
    size = larger((known["param"] / known["size"]) ** 0.5, hyper.eps2)
    cap = hyper.lr * t**0.5  # min(lr, 1/√t) is lr / max(1, lr·√t), and lr comes in later
    factor = size / clipping / where(cap > 1, cap, 1.0)
    if "scaled" in known:
        direction, state = known["scaled"]
        return direction.mul_(factor), state
    root, state, _ = inverse_root(grad, state, hyper, t, known, factor * known["scale"])
    return root.mul_(grad), state


COMMON = ("size_of_rows", "columns", "by_column")
PER_ROW = ("row_var", "least", "members", *COMMON)  # the last are the same for all rows already
BLOCKS = Blocks(
    passes=(factors, length), finish=finish, per_row=PER_ROW, totals=TOTALS, shortcut=unbounded
)


def init(param: Tensor, hyper: Values) -> State:
    """A mean of squares per row and per column, or per entry below two dimensions; all zero."""
    if param.dim() < 2:
        return {"variance": torch.zeros_like(param)}
    return {
        "row_var": param.new_zeros(param[..., :1].shape),
        "col_var": param.new_zeros(param[..., :1, :].shape),
    }


ADAFACTOR = Rule(
    name="adafactor",
    class_name="Adafactor",
    update=BLOCKS.update,
    blocks=BLOCKS,
    state=init,
    hypers={
        "lr": learning_rate(1e-2, 1e-4, 1e-2, "AlgoPerf 1e-4..1e-2; paper 1e-2"),
        "beta2_decay": Hyper(
            -0.8, -1.0, -0.5, at_most=0.0, doc="decay of the second moment is 1 - step^this"
        ),
        "eps1": Hyper(
            nan, 1e-30, 1e-3, log=True, at_least=0.0, optional=True,
            doc="least root of the second moment; None: of the dtype",
        ),
        "eps2": epsilon(1e-3, 1e-4, 1e-2, "paper: 1e-3", doc="least size of a parameter"),
        "d": Hyper(1.0, 1.0, 4.0, at_least=1.0, doc="largest size of the scaled gradient"),
        "weight_decay": weight_decay(0.0, 1e-3, 1.0, "AlgoPerf 1e-3..1"),
    },
    packs={"eps": ("eps1", "eps2")},
    scope="tensor",
    weight_decay_mode="decoupled",
    batch_scaling="sqrt",
    paper="Shazeer and Stern, ICML 2018, https://arxiv.org/abs/1804.04235",
    summary="Adam's scaling with a factored second moment and a step relative to the weights.",
    when="Models bound by memory, above a billion parameters.",
    equations=r"""
\beta_t = 1 - t^{\text{beta2\_decay}}, \quad
R_t = \beta_t R_{t-1} + (1 - \beta_t) \operatorname{mean}_{\text{columns}} G_t^2, \quad
C_t = \beta_t C_{t-1} + (1 - \beta_t) \operatorname{mean}_{\text{rows}} G_t^2 \\
V_t = \frac{R_t C_t}{\max(\operatorname{mean} R_t, \text{eps}_1)}
\quad \text{(below two dimensions: } V_t = \beta_t V_{t-1} + (1 - \beta_t) G_t^2 \text{)}, \quad
U_t = \frac{G_t}{\max(\sqrt{V_t}, \text{eps}_1)} \\
p_t = p_{t-1} - \max(\text{eps}_2, \operatorname{RMS}(p_{t-1})) \cdot \min(\text{lr}, 1 / \sqrt t)
    \cdot \frac{U_t}{\max(1, \operatorname{RMS}(U_t) / d)}
    - \text{lr} \cdot \text{weight\_decay} \cdot p_{t-1}
""",
)  # fmt: skip

RULES = (ADAFACTOR,)
