"""Lion: the sign of an interpolation between momentum and gradient.

Chen et al., "Symbolic Discovery of Optimization Algorithms", NeurIPS 2023,
https://arxiv.org/abs/2302.06675.
"""

from __future__ import annotations

import torch
from torch import Tensor

from optimizers.core import Rule, Scalar, State, Values, ema
from optimizers.rules.ranges import BETAS, beta, learning_rate, weight_decay


def update(
    grad: Tensor, param: Tensor, state: State, hyper: Values, t: Scalar
) -> tuple[Tensor, State]:
    """The direction uses beta1; the momentum that is kept uses beta2."""
    direction = ema(state["exp_avg"], grad, hyper.beta1).sign()
    return direction, {"exp_avg": ema(state["exp_avg"], grad, hyper.beta2)}


def init(param: Tensor, hyper: Values) -> State:
    """One momentum buffer, zero."""
    return {"exp_avg": torch.zeros_like(param)}


LION = Rule(
    name="lion",
    class_name="Lion",
    update=update,
    state=init,
    hypers={
        "lr": learning_rate(1e-4, 1e-5, 3e-3, "authors: 3-10x below AdamW; marin up to 8e-3"),
        "beta1": beta(0.9, 0.8, 0.98, "authors: 0.9 or 0.95", "decay in the direction", priority=2),
        "beta2": beta(0.99, 0.9, 0.995, "marin: best 0.95..0.98", "decay of the momentum"),
        "weight_decay": weight_decay(0.0, 1e-2, 1.0, "marin 0..1; authors: 3-10x AdamW's"),
    },
    packs=BETAS,
    scope="element",
    weight_decay_mode="decoupled",
    batch_scaling="sqrt",
    paper="Chen et al., NeurIPS 2023, https://arxiv.org/abs/2302.06675",
    summary="The sign of an interpolation between momentum and gradient.",
    when="Large batches and models bound by memory; learning rate 3-10 times below AdamW's.",
    equations=r"""
p_t = p_{t-1} - \text{lr} \cdot (\operatorname{sign}(\beta_1 m_{t-1} + (1 - \beta_1) g_t)
    + \text{weight\_decay} \cdot p_{t-1}) \\
m_t = \beta_2 m_{t-1} + (1 - \beta_2) g_t
""",
)

RULES = (LION,)
