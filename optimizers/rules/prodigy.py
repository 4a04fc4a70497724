"""Prodigy: Adam whose step size is an estimate of the distance to the solution.

Mishchenko, Defazio, "Prodigy: An Expeditiously Adaptive Parameter-Free Learner", ICML 2024,
https://arxiv.org/abs/2306.06101, algorithm 4 with the options of the authors' implementation.

The estimate d is one number for all parameters: each contributes to two sums, and no parameter
moves before d is known. Leave ``lr`` at 1 and tune ``d_coef``; a schedule multiplies as usual.
"""

from __future__ import annotations

from math import inf

import torch
from torch import Tensor

from optimizers.core import (
    Hyper,
    ModelHook,
    Option,
    Rule,
    Scalar,
    State,
    Values,
    add_scaled,
    bias_correction,
    where,
)
from optimizers.rules.ranges import BETAS, beta, epsilon, learning_rate, weight_decay

FLAG = (False, True)


def step_correction(hyper: Values, t: Scalar) -> Scalar:
    """Adam's bias correction as a factor of the step; 1 unless asked for."""
    if not hyper.use_bias_correction:
        return 1.0
    root: Scalar = bias_correction(hyper.beta2, t) ** 0.5
    return root / bias_correction(hyper.beta1, t)


def update(
    grad: Tensor, param: Tensor, state: State, hyper: Values, t: Scalar
) -> tuple[Tensor, State]:
    """Adam on gradients scaled by d, times d; weight decay is part of what d multiplies."""
    d = hyper.d_used
    exp_avg = hyper.beta1 * state["exp_avg"] + (d * (1 - hyper.beta1)) * grad
    exp_avg_sq = hyper.beta2 * state["exp_avg_sq"] + (d * d * (1 - hyper.beta2)) * (grad * grad)
    adam = exp_avg / (exp_avg_sq.sqrt() + hyper.d * hyper.eps)
    direction = add_scaled(adam, param, hyper.weight_decay) * (d * step_correction(hyper, t))
    return direction, {**state, "exp_avg": exp_avg, "exp_avg_sq": exp_avg_sq}


def partial(
    grad: Tensor, param: Tensor, state: State, hyper: Values, t: Scalar
) -> tuple[dict[str, Tensor], State]:
    """One parameter's part: how far it is along its gradients, and the weighted gradient sum."""
    d = hyper.d
    scaled = d / hyper.d0
    step = d * hyper.lr * step_correction(hyper, t)
    beta3 = hyper.beta2**0.5
    weight = where(hyper.lr > 0, d, 0.0) if hyper.safeguard_warmup else step
    s = beta3 * state["s"] + (scaled * weight) * grad
    progress = (grad * (state["p0"] - param)).sum() * (scaled * step)
    return {"progress": progress, "size": s.abs().sum()}, {**state, "s": s}


def combine(
    sums: dict[str, Tensor], shared: dict[str, Scalar], hyper: Values, t: Scalar
) -> dict[str, Scalar]:
    """The new estimate of d, which never falls; ``d_used`` is the one of this step."""
    d, d_max = shared["d"], shared["d_max"]
    numerator = hyper.beta2**0.5 * shared["numerator"] + sums["progress"]
    known = sums["size"] > 0
    d_hat = hyper.d_coef * numerator / torch.where(known, sums["size"], 1.0)
    d_max = torch.where(known & (d_hat > d_max), d_hat, d_max)
    grown = where(d == hyper.d0, d_max, d * hyper.growth_rate)
    d_next = torch.where(d_max < grown, d_max, grown)
    return {"d": d_next, "d_max": d_max, "d_used": d, "numerator": numerator}


def initial(hyper: Values) -> dict[str, float]:
    """The estimate starts at d0."""
    return {"d": hyper.d0, "d_max": hyper.d0, "d_used": hyper.d0, "numerator": 0.0}


def init(param: Tensor, hyper: Values) -> State:
    """Adam's moments, the weighted gradient sum, and where the parameter began."""
    names = ("exp_avg", "exp_avg_sq", "s")
    return {"p0": param.clone(), **{name: torch.zeros_like(param) for name in names}}


PRODIGY = Rule(
    name="prodigy",
    class_name="Prodigy",
    update=update,
    state=init,
    model=ModelHook(initial, partial, combine),
    hypers={
        "lr": learning_rate(1.0, 0.3, 3.0, "authors: leave at 1 and tune d_coef"),
        "beta1": beta(0.9, 0.8, 0.95, "authors: 0.9", "decay of the mean"),
        "beta2": beta(0.999, 0.98, 0.9999, "authors: 0.999, diffusion 0.99", "decay of the square"),
        "eps": epsilon(1e-8, 1e-10, 1e-6, "as for Adam"),
        "weight_decay": weight_decay(0.0, 1e-3, 0.1, "authors: 0, 0.001, 0.01, 0.1"),
        "d0": Hyper(
            1e-6, 1e-8, 1e-4, log=True, above=0.0, doc="first estimate of the distance"
        ),
        "d_coef": Hyper(
            1.0, 0.3, 3.0, log=True, priority=1, above=0.0,
            doc="factor of the estimate", source="authors: 0.5..2, at most 0.1..10",
        ),
        "growth_rate": Hyper(
            inf, 1.0, 1.2, above=0.0, unlimited=True,
            doc="the estimate grows at most by this factor per step",
        ),
    },
    options={
        "use_bias_correction": Option(False, FLAG, "Adam's bias correction"),
        "safeguard_warmup": Option(
            False, FLAG, "keep the learning rate out of the estimate's denominator"
        ),
    },
    packs=BETAS,
    scope="model",
    weight_decay_mode="inside",
    batch_scaling="none",
    paper="Mishchenko and Defazio, ICML 2024, https://arxiv.org/abs/2306.06101",
    summary="Adam whose step size is an estimate of the distance to the solution.",
    when="No budget to search a learning rate; with safeguard_warmup if there is a warm-up.",
    equations=r"""
r_t = \sqrt{\beta_2}\, r_{t-1} + \text{lr} \cdot d_{t-1}^2 \langle g_t, p_0 - p_{t-1} \rangle, \quad
s_t = \sqrt{\beta_2}\, s_{t-1} + \text{lr} \cdot d_{t-1}^2 g_t \\
d_t = \max(d_{t-1}, \text{d\_coef} \cdot r_t / \|s_t\|_1) \quad \text{over all parameters} \\
m_t = \beta_1 m_{t-1} + (1 - \beta_1) d_{t-1} g_t, \quad
v_t = \beta_2 v_{t-1} + (1 - \beta_2) d_{t-1}^2 g_t^2 \\
p_t = p_{t-1} - \text{lr} \cdot d_{t-1} (m_t / (\sqrt{v_t} + d_t \text{eps})
    + \text{weight\_decay} \cdot p_{t-1})
""",
)  # fmt: skip

RULES = (PRODIGY,)
