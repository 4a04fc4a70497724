"""Schedule-Free SGD and AdamW: gradients at a point between the iterate and its running average.

Defazio, Yang, Mehta, Mishchenko, Khaled, Cutkosky, "The Road Less Scheduled", NeurIPS 2024,
https://arxiv.org/abs/2405.15682, with the weights of the authors' implementation.

Three sequences: z takes the steps, x averages z, and gradients are taken at y between them. The
parameters hold y during training and x after ``opt.eval()``; x itself is not stored, as
``x = y + (1 - 1/beta)·(z - y)``. Call ``opt.train()`` before the next step, and recompute
BatchNorm's statistics with some training batches before an evaluation at x.
"""

from __future__ import annotations

from dataclasses import replace
from math import inf

import torch
from torch import Tensor

from optimizers.core import (
    Hyper,
    Points,
    Rule,
    Scalar,
    State,
    Values,
    add_scaled,
    bias_correction,
    ema_square,
    where,
)
from optimizers.rules.ranges import BETAS, beta, epsilon, learning_rate, weight_decay


def warmed_up(hyper: Values, t: Scalar) -> Scalar:
    """The linear warm-up's factor, (0, 1]."""
    warming = t < hyper.warmup_steps
    steps: Scalar = where(warming, hyper.warmup_steps, 1.0)
    return where(warming, t / steps, 1.0)


def average_weight(state: State, hyper: Values, factor: Scalar, t: Scalar) -> tuple[Tensor, State]:
    """The weight of this step in the average x, and the two numbers it comes from.

    A step with learning rate 0 does not take part.
    """
    dtype = state["lr_max"].dtype
    lr_max = torch.clamp(state["lr_max"], min=hyper.lr * factor).to(dtype)
    weight = where(hyper.lr > 0, t**hyper.r * lr_max**hyper.weight_lr_power, 0.0 * lr_max)
    weight_sum = (state["weight_sum"] + weight).to(dtype)
    share = weight / torch.where(weight_sum > 0, weight_sum, 1.0)
    return share.to(dtype), {"lr_max": lr_max, "weight_sum": weight_sum}


def advance_points(
    step: Tensor, param: Tensor, state: State, hyper: Values, t: Scalar, beta: Scalar
) -> tuple[Tensor, State]:
    """Move z along ``step`` and the average with it; returns how far y moves per learning rate."""
    step = add_scaled(step, param, hyper.weight_decay)
    factor = warmed_up(hyper, t)
    share, numbers = average_weight(state, hyper, factor, t)
    lr = where(hyper.lr > 0, hyper.lr, 1.0)  # with 0 nothing moves
    toward_z = (param - state["z"]) * (share / lr)
    direction = toward_z + step * (factor * (1 - beta * (1 - share)))
    z = state["z"] - step * (hyper.lr * factor)
    return direction, {"z": z, **numbers}


def update_sgd(
    grad: Tensor, param: Tensor, state: State, hyper: Values, t: Scalar
) -> tuple[Tensor, State]:
    """z moves along the gradient."""
    return advance_points(grad, param, state, hyper, t, hyper.momentum)


def update_adamw(
    grad: Tensor, param: Tensor, state: State, hyper: Values, t: Scalar
) -> tuple[Tensor, State]:
    """z moves along the gradient over the root of its running square."""
    exp_avg_sq = ema_square(state["exp_avg_sq"], grad, hyper.beta2)
    denominator = exp_avg_sq.sqrt() / bias_correction(hyper.beta2, t) ** 0.5 + hyper.eps
    direction, new = advance_points(grad / denominator, param, state, hyper, t, hyper.beta1)
    return direction, {"exp_avg_sq": exp_avg_sq, **new}


def init_sgd(param: Tensor, hyper: Values) -> State:
    """z starts at the parameter; the largest learning rate and the sum of weights at zero."""
    zero = torch.zeros((), dtype=param.dtype, device=param.device)
    return {"z": param.clone(), "lr_max": zero, "weight_sum": zero.clone()}


def init_adamw(param: Tensor, hyper: Values) -> State:
    """The second moment starts at zero, the rest as for SGD."""
    return {"exp_avg_sq": torch.zeros_like(param), **init_sgd(param, hyper)}


def average(param: Tensor, z: Tensor, beta: Scalar) -> Tensor:
    """The average x, from the training point y and the iterate z."""
    return param + (1 - 1 / beta) * (z - param)


AVERAGE = {
    "warmup_steps": Hyper(
        0, 0, 10_000, integer=True, at_least=0, doc="steps of linear warm-up of the learning rate"
    ),
    "r": Hyper(0.0, 0.0, 1.0, doc="the average weighs step t by t^r", at_least=0.0),
    "weight_lr_power": Hyper(
        2.0, 0.0, 2.0, doc="the average weighs a step by lr^weight_lr_power", at_least=0.0
    ),
}


def mixing(source: str) -> Hyper:
    """The part of x in y, in (0, 1): with 0 the average could not be recovered from y."""
    row = beta(0.9, 0.8, 0.98, source, "part of the average in the training point", priority=2)
    return replace(row, at_least=-inf, above=0.0)


SGD = Rule(
    name="schedulefree_sgd",
    class_name="SGDScheduleFree",
    update=update_sgd,
    state=init_sgd,
    points=Points(lambda param, state, hyper: average(param, state["z"], hyper.momentum)),
    hypers={
        "lr": learning_rate(1.0, 1e-2, 50.0, "authors: 10-50x SGD's with a schedule"),
        "momentum": mixing("authors: 0.9, longer runs 0.95..0.98"),
        "weight_decay": weight_decay(0.0, 1e-7, 5e-4, "as for SGD"),
        **AVERAGE,
    },
    scope="element",
    weight_decay_mode="inside",
    batch_scaling="linear",
    linear=True,
    paper="Defazio et al., NeurIPS 2024, https://arxiv.org/abs/2405.15682",
    summary="SGD at a point between the iterate and its running average; needs no schedule.",
    when="Runs whose length is not known in advance; a constant learning rate, with a warm-up.",
    equations=r"""
s_t = \text{lr} \cdot \min(t / \text{warmup\_steps}, 1), \quad
    w_t = t^r \max_{i \le t} s_i^{\text{weight\_lr\_power}}, \quad c_t = w_t / \sum_{i \le t} w_i \\
z_t = z_{t-1} - s_t \cdot (g_t + \text{weight\_decay} \cdot p_{t-1}), \quad
    x_t = (1 - c_t) x_{t-1} + c_t z_t \\
p_t = (1 - \text{momentum}) z_t + \text{momentum} \cdot x_t
    \quad \text{(evaluation at } x_t \text{)}
""",
)

ADAMW = replace(
    SGD,
    name="schedulefree_adamw",
    class_name="AdamWScheduleFree",
    update=update_adamw,
    state=init_adamw,
    points=Points(lambda param, state, hyper: average(param, state["z"], hyper.beta1)),
    hypers={
        "lr": learning_rate(2.5e-3, 1e-4, 1e-1, "authors: 1-10x AdamW's; AlgoPerf 1e-3..1e-2"),
        "beta1": mixing("AlgoPerf 0.9..0.925; authors to 0.98"),
        "beta2": beta(0.999, 0.9, 0.9999, "AlgoPerf 0.99..0.9955", "decay of the square"),
        "eps": epsilon(1e-8, 1e-10, 1e-3, "as for AdamW, where it has to be tuned at all"),
        "weight_decay": weight_decay(0.0, 5e-3, 1.0, "AlgoPerf 0.04..0.08, widened as AdamW"),
        **AVERAGE,
    },
    packs=BETAS,
    batch_scaling="sqrt",
    linear=False,
    summary="AdamW at a point between the iterate and its running average; needs no schedule.",
    equations=SGD.equations.replace(
        r"(g_t +", r"(g_t / (\sqrt{v_t / (1 - \beta_2^t)} + \text{eps}) +"
    ).replace(r"\text{momentum}", r"\beta_1")
    + r"\\ v_t = \beta_2 v_{t-1} + (1 - \beta_2) g_t^2"
    + "\n",
)

RULES = (SGD, ADAMW)
