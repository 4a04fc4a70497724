"""AMSGrad: Adam whose second moment never falls.

Reddi, Kale, Kumar, "On the Convergence of Adam and Beyond", ICLR 2018,
https://arxiv.org/abs/1904.09237. Three rules go by this name, and they differ by 40-80 % after 25
steps: the paper corrects no bias, torch takes the largest square and then corrects it, optax takes
the largest corrected square.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from optimizers.core import Option, Scalar, State, Values, bias_correction, ema, ema_square
from optimizers.rules import adam


def update(
    grad: Tensor, param: Tensor, state: State, hyper: Values, t: Scalar
) -> tuple[Tensor, State]:
    """The running mean over the root of the largest running square."""
    exp_avg = ema(state["exp_avg"], grad, hyper.beta1)
    exp_avg_sq = ema_square(state["exp_avg_sq"], grad, hyper.beta2)
    correction1, correction2 = bias_correction(hyper.beta1, t), bias_correction(hyper.beta2, t)
    square = exp_avg_sq / correction2 if hyper.variant == "optax" else exp_avg_sq
    largest = torch.maximum(state["max_exp_avg_sq"], square)
    new = {"exp_avg": exp_avg, "exp_avg_sq": exp_avg_sq, "max_exp_avg_sq": largest}
    if hyper.variant == "paper":
        return exp_avg / (largest.sqrt() + hyper.eps), new
    root = (largest / correction2 if hyper.variant == "torch" else largest).sqrt()
    return exp_avg / ((root + hyper.eps) * correction1), new


def init(param: Tensor, hyper: Values) -> State:
    """Both moments and the largest square start at zero."""
    return {**adam.init(param, hyper), "max_exp_avg_sq": torch.zeros_like(param)}


AMSGRAD = replace(
    adam.ADAM,
    name="amsgrad",
    class_name="AMSGrad",
    update=update,
    state=init,
    options={
        "variant": Option(
            "torch", ("torch", "paper", "optax"), "where the bias is corrected: whose rule"
        )
    },
    torch_group={"amsgrad": True},
    paper="Reddi et al., ICLR 2018, https://arxiv.org/abs/1904.09237",
    summary="Adam whose second moment never falls.",
    when="When Adam's step grows again late in training; rarely better otherwise.",
    equations=r"""
m_t = \beta_1 m_{t-1} + (1 - \beta_1) g_t, \quad v_t = \beta_2 v_{t-1} + (1 - \beta_2) g_t^2, \quad
\hat v_t = \max(\hat v_{t-1}, v_t) \\
p_t = p_{t-1}
    - \text{lr} \cdot \frac{m_t / (1 - \beta_1^t)}{\sqrt{\hat v_t / (1 - \beta_2^t)} + \text{eps}}
\quad \text{(paper: without the corrections; optax: } \hat v_t
    = \max(\hat v_{t-1}, v_t / (1 - \beta_2^t)) \text{ instead)}
""",
)

RULES = (AMSGRAD,)
