"""AdaBelief: Adam that divides by how far gradients stray from their mean.

Zhuang et al., "AdaBelief Optimizer: Adapting Stepsizes by the Belief in Observed Gradients",
NeurIPS 2020, https://arxiv.org/abs/2010.07468.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from optimizers.core import Scalar, State, Values, bias_correction, ema, ema_square
from optimizers.rules.adam import ADAM
from optimizers.rules.ranges import epsilon, learning_rate, weight_decay


def update(
    grad: Tensor, param: Tensor, state: State, hyper: Values, t: Scalar
) -> tuple[Tensor, State]:
    """The corrected mean over the root of the corrected variance; eps also enters the variance."""
    exp_avg = ema(state["exp_avg"], grad, hyper.beta1)
    exp_avg_var = ema_square(state["exp_avg_var"], grad - exp_avg, hyper.beta2) + hyper.eps
    root = (exp_avg_var / bias_correction(hyper.beta2, t)).sqrt()
    direction = exp_avg / ((root + hyper.eps) * bias_correction(hyper.beta1, t))
    return direction, {"exp_avg": exp_avg, "exp_avg_var": exp_avg_var}


def init(param: Tensor, hyper: Values) -> State:
    """Mean and variance start at zero."""
    return {"exp_avg": torch.zeros_like(param), "exp_avg_var": torch.zeros_like(param)}


ADABELIEF = replace(
    ADAM,
    name="adabelief",
    class_name="AdaBelief",
    update=update,
    state=init,
    hypers={
        **ADAM.hypers,
        "lr": learning_rate(1e-3, 1e-4, 1e-2, "authors: 1e-3; as Adam 1e-4..1e-2"),
        "eps": epsilon(1e-16, 1e-16, 1e-8, "authors: 1e-16, 1e-12 or 1e-8 by task"),
        "weight_decay": weight_decay(0.0, 5e-3, 1.0, "as AdamW: AlgoPerf 5e-3..1"),
    },
    weight_decay_mode="decoupled",
    torch_group={},
    paper="Zhuang et al., NeurIPS 2020, https://arxiv.org/abs/2010.07468",
    summary="Adam that divides by the deviation of gradients from their mean.",
    when="Vision models and GANs where Adam generalises worse than SGD; eps matters.",
    equations=r"""
m_t = \beta_1 m_{t-1} + (1 - \beta_1) g_t, \quad
s_t = \beta_2 s_{t-1} + (1 - \beta_2) (g_t - m_t)^2 + \text{eps} \\
p_t = p_{t-1}
    - \text{lr} \cdot \frac{m_t / (1 - \beta_1^t)}{\sqrt{s_t / (1 - \beta_2^t)} + \text{eps}}
    - \text{lr} \cdot \text{weight\_decay} \cdot p_{t-1}
""",
)

RULES = (ADABELIEF,)
