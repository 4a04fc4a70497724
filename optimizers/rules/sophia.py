"""Sophia-G: momentum over a clipped estimate of the Hessian's diagonal.

Liu, Li, Hall, Liang, Ma, "Sophia: A Scalable Stochastic Second-order Optimizer for Language Model
Pre-training", ICLR 2024, https://arxiv.org/abs/2305.14342. The estimate is Gauss-Newton-Bartlett's:
the squared gradient of the loss on labels that are sampled from the model's own predictions. Every
``update_period`` steps, before `step`:

    if opt.hessian_due:
        logits = model(inputs)
        labels = torch.distributions.Categorical(logits=logits).sample()
        cross_entropy(logits, labels).backward()
        opt.update_hessian()
        opt.zero_grad()
"""

from __future__ import annotations

import torch
from torch import Tensor

from optimizers.core import Hyper, Rule, Scalar, State, Values, ema, ema_square
from optimizers.rules.ranges import BETAS, beta, learning_rate, weight_decay

EPS = 1e-15  # the authors'; keeps the ratio defined where the Hessian is zero


def update(
    grad: Tensor, param: Tensor, state: State, hyper: Values, t: Scalar
) -> tuple[Tensor, State]:
    """The momentum over the Hessian within -1 and 1, its sign where the Hessian is small."""
    exp_avg = ema(state["exp_avg"], grad, hyper.beta1)
    curvature = state["hessian"] * (hyper.rho * hyper.bs) + EPS
    return (exp_avg / curvature).clamp(-1.0, 1.0), {**state, "exp_avg": exp_avg}


def observe(grad: Tensor, param: Tensor, state: State, hyper: Values, t: Scalar) -> State:
    """Fold in the gradient on sampled labels."""
    return {**state, "hessian": ema_square(state["hessian"], grad, hyper.beta2)}


def init(param: Tensor, hyper: Values) -> State:
    """Momentum and Hessian start at zero."""
    return {"exp_avg": torch.zeros_like(param), "hessian": torch.zeros_like(param)}


SOPHIA = Rule(
    name="sophia",
    class_name="SophiaG",
    update=update,
    state=init,
    observe=observe,
    hypers={
        "lr": learning_rate(6e-4, 1e-5, 3e-3, "authors: about AdamW's, 3-10x Lion's"),
        "beta1": beta(0.965, 0.9, 0.98, "authors: 0.965", "decay of the mean", priority=2),
        "beta2": beta(0.99, 0.95, 0.999, "authors: 0.99", "decay of the Hessian"),
        "rho": Hyper(
            0.04, 0.01, 0.1, log=True, priority=2, above=0.0,
            doc="how much of the Hessian divides; more entries are clipped when it is smaller",
            source="authors: 0.03..0.08, so that 10-50 % of the entries are not clipped",
        ),
        "weight_decay": weight_decay(0.1, 1e-2, 0.5, "authors: 0.1..0.2, about twice AdamW's"),
        "bs": Hyper(
            5120, 1, 1e7, log=True, above=0.0,
            doc="samples (tokens) that the loss of `update_hessian` averages over",
        ),
        "update_period": Hyper(
            10, 1, 20, integer=True, at_least=1,
            doc="steps between two calls of `update_hessian`",
        ),
    },
    packs=BETAS,
    scope="element",
    weight_decay_mode="decoupled",
    batch_scaling="sqrt",
    paper="Liu et al., ICLR 2024, https://arxiv.org/abs/2305.14342",
    summary="Momentum over a running estimate of the Hessian's diagonal, each entry clipped.",
    when="Language-model pretraining with a cross-entropy loss to sample labels from.",
    equations=r"""
m_t = \beta_1 m_{t-1} + (1 - \beta_1) g_t \\
h_t = \beta_2 h_{t-k} + (1 - \beta_2) \hat g_t^2
    \quad \text{every } k = \text{update\_period} \text{ steps; } \hat g \text{: labels sampled} \\
p_t = p_{t-1} - \text{lr} \cdot (\operatorname{sign}(m_t)
    \min(|m_t| / (\text{rho} \cdot \text{bs} \cdot h_t + 10^{-15}), 1)
    + \text{weight\_decay} \cdot p_{t-1})
""",
)  # fmt: skip

RULES = (SOPHIA,)
