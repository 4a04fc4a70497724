"""Adafactor: Adam's second moment kept as one row and one column per matrix.

Shazeer, Stern, "Adafactor: Adaptive Learning Rates with Sublinear Memory Cost", ICML 2018,
https://arxiv.org/abs/1804.04235. As in torch: ``lr`` caps the relative step and scales the
decoupled weight decay, and eps1 bounds the second moment from below instead of being added to each
square. Without eps1 it is the precision of the arithmetic, of each parameter for itself (torch's
loop takes the first parameter's for all).
"""

from __future__ import annotations

from math import inf, nan

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
    ema_square,
    where,
)
from optimizers.parts import Blocks, Known
from optimizers.rules.ranges import epsilon, learning_rate, weight_decay

TOTALS = ("size", "param", "scaled_sum")  # of all matrices of a parameter together
SMALL = 64  # entries of a matrix, below which operations on its rows are slower than products


def at_most_(values: Tensor, bound: Scalar) -> Tensor:
    """``min(values, bound)`` per entry, for a temporary that may be overwritten."""
    if isinstance(bound, Tensor):
        return torch.minimum(values, bound)
    return values.clamp_max_(bound)  # clamp_ has no rule for vmap


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


def members(like: Tensor) -> tuple[Tensor, Tensor]:
    """Which row, and which column, each entry of a matrix belongs to: ones among zeros.

    Sums over rows and columns, and values per row and column spread over the entries, are products
    with these. Of shapes ``(entries, rows)`` and ``(entries, columns)``.
    """
    rows, columns = like.shape[-2:]
    row = torch.eye(rows, dtype=like.dtype, device=like.device).repeat_interleave(columns, dim=0)
    return row, torch.eye(columns, dtype=like.dtype, device=like.device).repeat(rows, 1)


def square_sums(grad: Tensor, space: Tensor | None) -> tuple[Tensor, Tensor]:
    """The sums of squares of each row and of each column, with the dimensions that go kept."""
    if is_single(grad):
        squares = grad * grad
        return squares, squares
    squares = torch.mul(grad, grad, out=space)
    if grad.dim() < 3:  # the fastest of either
        lengths: Tensor = torch.linalg.vector_norm(grad, dim=-1, keepdim=True)
        return lengths * lengths, squares.sum(dim=-2, keepdim=True)
    rows, columns = grad.shape[-2:]
    if not is_small(grad):
        return squares.sum(dim=-1, keepdim=True), squares.sum(dim=-2, keepdim=True)
    sums = squares.reshape(-1, rows * columns) @ torch.cat(members(grad), dim=1)
    by_row, by_column = sums[:, :rows], sums[:, rows:]
    leading = grad.shape[:-2]
    return by_row.reshape(*leading, rows, 1), by_column.reshape(*leading, 1, columns)


def mean(total: Tensor, count: float) -> Tensor:
    """A sum over so many entries, which are often one, as a mean."""
    return total if count == 1 else total / count


def outer(by_row: Tensor, by_column: Tensor, like: Tensor, space: Tensor | None) -> Tensor:
    """The product of a value per row and one per column, for each entry."""
    if not is_small(like):
        return torch.mul(by_row, by_column, out=space)
    most = torch.finfo(like.dtype).max  # infinity times zero would be NaN
    spread = (
        values.clamp(max=most).reshape(-1, own.shape[1]) @ own.mT
        for values, own in zip((by_row, by_column), members(like), strict=True)
    )
    product: Tensor = next(spread).mul_(next(spread))
    return product.reshape(like.shape)


def factors(
    grad: Tensor, param: Tensor, state: State, hyper: Values, t: Scalar, known: Known
) -> Known:
    """What these rows say of sizes and of the second moment."""
    found: Known = {"size": float(grad.numel()), "param": square_sum(param)}
    if grad.dim() > 1:
        row_sums, found["column_sum"] = square_sums(grad, known.get("space"))
        row_var = ema(state["row_var"], mean(row_sums, grad.shape[-1]), 1 - t**hyper.beta2_decay)
        found["rows"] = float(grad.shape[-2])
        found["row_var"] = row_var
        found["row_sum"] = row_var if is_single(grad) else row_var.sum(dim=-2, keepdim=True)
    return found


def roots(state: State, hyper: Values, t: Scalar, known: Known, eps1: Scalar) -> Known:
    """One over the roots of the factors, and what becomes of the columns' factor."""
    new, rows = mean(known["column_sum"], known["rows"]), mean(known["row_sum"], known["rows"])
    col_var = ema(state["col_var"], new, 1 - t**hyper.beta2_decay)
    # roots of the factors instead of factors of the root: rows and columns are few
    by_row = (known["row_var"] / at_least(rows, eps1)).rsqrt_()
    return {"by_row": by_row, "by_column": col_var.rsqrt(), "col_var": col_var}


def scaled(
    grad: Tensor, param: Tensor, state: State, hyper: Values, t: Scalar, known: Known
) -> tuple[Tensor, State, Known]:
    """The gradient over the root of its second moment, the new state, and the roots of factors."""
    absent = hyper.eps1 != hyper.eps1  # NaN stands for None
    eps1 = where(absent, torch.finfo(param.dtype).eps, hyper.eps1)
    if grad.dim() < 2:
        variance = ema_square(state["variance"], grad, 1 - t**hyper.beta2_decay)
        scale = at_least(variance, eps1 * eps1).rsqrt()
        return grad * scale, {"variance": variance}, {}
    own = known if "by_row" in known else roots(state, hyper, t, known, eps1)
    scale = outer(own["by_row"], own["by_column"], grad, known.get("space"))
    bound = where(eps1 > 0, 1 / where(eps1 > 0, eps1, 1.0), inf)
    new = {"row_var": known["row_var"], "col_var": own["col_var"]}
    return at_most_(scale, bound).mul_(grad), new, own


def length(
    grad: Tensor, param: Tensor, state: State, hyper: Values, t: Scalar, known: Known
) -> Known:
    """The squares of the scaled gradient; of a matrix, the roots of its factors are kept."""
    direction, new, own = scaled(grad, param, state, hyper, t, known)
    found: Known = {"scaled_sum": square_sum(direction)}
    if "whole" in known:
        return {**found, "scaled": (direction, new)}
    return {**found, **own} if grad.dim() == 2 else found


def finish(
    grad: Tensor, param: Tensor, state: State, hyper: Values, t: Scalar, known: Known
) -> tuple[Tensor, State]:
    """The scaled gradient, clipped to size d, as a part of the parameter's own size."""
    if "scaled" in known:
        direction, state = known["scaled"]
    else:
        direction, state, _ = scaled(grad, param, state, hyper, t, known)
    clipping = at_least((known["scaled_sum"] / known["size"]) ** 0.5 / hyper.d, 1.0)
    size = at_least((known["param"] / known["size"]) ** 0.5, hyper.eps2)
    cap = hyper.lr * t**0.5  # min(lr, 1/√t) is lr / max(1, lr·√t), and lr comes in later
    return direction.mul_(size / clipping / where(cap > 1, cap, 1.0)), state


PER_ROW = ("row_var", "by_row", "by_column", "col_var")  # of which all but the first are alike
BLOCKS = Blocks(passes=(factors, length), finish=finish, per_row=PER_ROW, totals=TOTALS)


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
