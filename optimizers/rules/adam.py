"""Adam and AdamW: the gradient's running mean over the root of its running square.

Kingma, Ba, "Adam: A Method for Stochastic Optimization", ICLR 2015,
https://arxiv.org/abs/1412.6980. Loshchilov, Hutter, "Decoupled Weight Decay Regularization", ICLR
2019, https://arxiv.org/abs/1711.05101.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from optimizers.core import Rule, Scalar, State, Values, bias_correction, ema, ema_square
from optimizers.rules.ranges import BETAS, beta, epsilon, learning_rate, weight_decay


def update(
    grad: Tensor, param: Tensor, state: State, hyper: Values, t: Scalar
) -> tuple[Tensor, State]:
    """The bias-corrected mean over the root of the bias-corrected square."""
    exp_avg = ema(state["exp_avg"], grad, hyper.beta1)
    exp_avg_sq = ema_square(state["exp_avg_sq"], grad, hyper.beta2)
    correction1 = bias_correction(hyper.beta1, t)
    correction2 = bias_correction(hyper.beta2, t)
    denominator = exp_avg_sq.sqrt() * (correction1 / correction2**0.5) + hyper.eps * correction1
    return exp_avg / denominator, {"exp_avg": exp_avg, "exp_avg_sq": exp_avg_sq}


def init(param: Tensor, hyper: Values) -> State:
    """Both moments start at zero."""
    return {"exp_avg": torch.zeros_like(param), "exp_avg_sq": torch.zeros_like(param)}


ADAM = Rule(
    name="adam",
    class_name="Adam",
    update=update,
    state=init,
    hypers={
        "lr": learning_rate(1e-3, 1e-4, 1e-2, "AlgoPerf 1e-4..1e-2"),
        "beta1": beta(
            0.9, 0.5, 0.98, "AlgoPerf: 1-beta1 0.02..0.5", "decay of the mean", priority=2
        ),
        "beta2": beta(
            0.999, 0.9, 0.9999, "Sivaprasad et al. 2020, narrowed", "decay of the square"
        ),
        "eps": epsilon(1e-8, 1e-8, 1.0, "Sivaprasad et al. 2020: 10^U(-8, 0)"),
        "weight_decay": weight_decay(0.0, 1e-6, 1e-3, "1e-6..1e-3 as an L2 penalty"),
    },
    packs=BETAS,
    scope="element",
    weight_decay_mode="l2",
    batch_scaling="sqrt",
    torch_group={"amsgrad": False},
    paper="Kingma and Ba, ICLR 2015, https://arxiv.org/abs/1412.6980",
    summary="The gradient's running mean over the root of its running square.",
    when="Small recurrent or reinforcement-learning models; with weight decay prefer AdamW.",
    equations=r"""
m_t = \beta_1 m_{t-1} + (1 - \beta_1) g_t, \quad v_t = \beta_2 v_{t-1} + (1 - \beta_2) g_t^2 \\
p_t = p_{t-1}
    - \text{lr} \cdot \frac{m_t / (1 - \beta_1^t)}{\sqrt{v_t / (1 - \beta_2^t)} + \text{eps}}
""",
)

ADAMW = replace(
    ADAM,
    name="adamw",
    class_name="AdamW",
    hypers={
        **ADAM.hypers,
        "lr": learning_rate(1e-3, 1e-5, 3e-2, "AlgoPerf 1e-4..1e-2, widened for fine-tuning"),
        "weight_decay": weight_decay(1e-2, 5e-3, 1.0, "AlgoPerf 5e-3..1"),
    },
    weight_decay_mode="decoupled",
    paper="Loshchilov and Hutter, ICLR 2019, https://arxiv.org/abs/1711.05101",
    summary="Adam with weight decay applied to the parameter instead of the gradient.",
    when="Transformers, fine-tuning, and whenever unsure.",
    equations=ADAM.equations.rstrip()
    + r" - \text{lr} \cdot \text{weight\_decay} \cdot p_{t-1}"
    + "\n",
)

RULES = (ADAM, ADAMW)
