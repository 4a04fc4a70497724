"""Adan: Adam's idea with Nesterov momentum written through differences of gradients.

Xie, Zhou, Li, Lin, Yan, "Adan: Adaptive Nesterov Momentum Algorithm for Faster Optimizing Deep
Models", TPAMI 2024, https://arxiv.org/abs/2208.06677. As in the authors' code the betas are
decays (the paper's are 1 minus them) and bias is corrected; weight decay multiplies by
1 - lr·weight_decay (their ``no_prox``).
"""

from __future__ import annotations

import torch
from torch import Tensor

from optimizers.core import Rule, Scalar, State, Values, bias_correction, ema, ema_square, where
from optimizers.rules.ranges import beta, epsilon, learning_rate, weight_decay


def update(
    grad: Tensor, param: Tensor, state: State, hyper: Values, t: Scalar
) -> tuple[Tensor, State]:
    """The mean gradient plus the mean change, over the root of the look-ahead's square."""
    change = where(t == 1, 0.0, 1.0) * (grad - state["previous_grad"])
    ahead = grad + hyper.beta2 * change
    exp_avg = ema(state["exp_avg"], grad, hyper.beta1)
    exp_avg_diff = ema(state["exp_avg_diff"], change, hyper.beta2)
    exp_avg_sq = ema_square(state["exp_avg_sq"], ahead, hyper.beta3)
    mean = exp_avg / bias_correction(hyper.beta1, t)
    mean_change = exp_avg_diff / bias_correction(hyper.beta2, t)
    root = (exp_avg_sq / bias_correction(hyper.beta3, t)).sqrt()
    return (mean + hyper.beta2 * mean_change) / (root + hyper.eps), {
        "exp_avg": exp_avg,
        "exp_avg_diff": exp_avg_diff,
        "exp_avg_sq": exp_avg_sq,
        "previous_grad": grad,
    }


def init(param: Tensor, hyper: Values) -> State:
    """Three averages and the last gradient, zero; the first gradient has no change."""
    keys = ("exp_avg", "exp_avg_diff", "exp_avg_sq", "previous_grad")
    return {key: torch.zeros_like(param) for key in keys}


ADAN = Rule(
    name="adan",
    class_name="Adan",
    update=update,
    state=init,
    hypers={
        "lr": learning_rate(1e-3, 1e-4, 2e-2, "authors: up to 5-10 times AdamW's"),
        "beta1": beta(0.98, 0.9, 0.99, "authors: 0.98", "decay of the mean", priority=2),
        "beta2": beta(0.92, 0.8, 0.98, "authors: 0.92", "decay of the mean change"),
        "beta3": beta(0.99, 0.9, 0.999, "authors: 0.99", "decay of the square"),
        "eps": epsilon(1e-8, 1e-8, 1e-3, "authors: 1e-8"),
        "weight_decay": weight_decay(0.0, 5e-3, 1.0, "authors: 0.02; as AdamW 5e-3..1"),
    },
    packs={"betas": ("beta1", "beta2", "beta3")},
    scope="element",
    weight_decay_mode="decoupled",
    batch_scaling="sqrt",
    paper="Xie et al., TPAMI 2024, https://arxiv.org/abs/2208.06677",
    summary="Nesterov momentum through the running mean of gradient differences.",
    when="Vision transformers and large batches, when four arrays of state are affordable.",
    equations=r"""
\Delta_1 = 0, \quad \Delta_t = g_t - g_{t-1}, \quad
m_t = \beta_1 m_{t-1} + (1 - \beta_1) g_t, \quad
d_t = \beta_2 d_{t-1} + (1 - \beta_2) \Delta_t \\
v_t = \beta_3 v_{t-1} + (1 - \beta_3) (g_t + \beta_2 \Delta_t)^2 \\
p_t = p_{t-1} - \text{lr} \cdot
    \frac{m_t / (1 - \beta_1^t) + \beta_2 d_t / (1 - \beta_2^t)}
    {\sqrt{v_t / (1 - \beta_3^t)} + \text{eps}}
    - \text{lr} \cdot \text{weight\_decay} \cdot p_{t-1}
""",
)

RULES = (ADAN,)
