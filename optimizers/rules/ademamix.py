"""AdEMAMix: Adam with a second, very slow mean of the gradient.

Pagliardini, Ablin, Grangier, "The AdEMAMix Optimizer: Better, Faster, Older", ICLR 2025,
https://arxiv.org/abs/2409.03137.
"""

from __future__ import annotations

from dataclasses import replace
from math import e, log

import torch
from torch import Tensor

from optimizers.core import (
    Hyper,
    Rule,
    Scalar,
    State,
    Values,
    bias_correction,
    ema,
    ema_square,
    where,
)
from optimizers.rules import adam
from optimizers.rules.adam import ADAM
from optimizers.rules.ranges import beta, learning_rate, weight_decay


def progress(t: Scalar, steps: Scalar) -> Scalar:
    """The part of a warmup that is over, in [0, 1]; 1 when it takes no steps."""
    part: Scalar = t / where(steps > t, steps, t)
    return part


def time_scale(decay: Scalar) -> Scalar:
    """``1 / ln(decay)``: how many updates an average looks back, negative."""
    if isinstance(decay, Tensor):
        return 1 / decay.log()
    return 1 / log(decay) if decay > 0 else 0.0


def update(
    grad: Tensor, param: Tensor, state: State, hyper: Values, t: Scalar
) -> tuple[Tensor, State]:
    """The corrected fast mean plus alpha slow means, over the root of the corrected square."""
    part = progress(t, hyper.beta3_warmup)
    scale = (1 - part) * time_scale(hyper.beta1) + part * time_scale(hyper.beta3)
    warm = e ** (1 / scale)
    beta3 = where(warm < hyper.beta3, warm, hyper.beta3)
    alpha = hyper.alpha * progress(t, hyper.alpha_warmup)
    exp_avg = ema(state["exp_avg"], grad, hyper.beta1)
    exp_avg_slow = ema(state["exp_avg_slow"], grad, beta3)
    exp_avg_sq = ema_square(state["exp_avg_sq"], grad, hyper.beta2)
    root = (exp_avg_sq / bias_correction(hyper.beta2, t)).sqrt()
    mean = exp_avg / bias_correction(hyper.beta1, t) + alpha * exp_avg_slow
    new = {"exp_avg": exp_avg, "exp_avg_slow": exp_avg_slow, "exp_avg_sq": exp_avg_sq}
    return mean / (root + hyper.eps), new


def init(param: Tensor, hyper: Values) -> State:
    """Both means and the square start at zero."""
    return {**adam.init(param, hyper), "exp_avg_slow": torch.zeros_like(param)}


ADEMAMIX = Rule(
    name="ademamix",
    class_name="AdEMAMix",
    update=update,
    state=init,
    hypers={
        "lr": learning_rate(1e-3, 1e-5, 1e-2, "as AdamW"),
        "beta1": ADAM.hypers["beta1"],
        "beta2": ADAM.hypers["beta2"],
        "beta3": replace(
            beta(0.9999, 0.999, 0.99999, "paper: 0.999..0.9999", "decay of the slow mean"),
            above=0.0,
        ),
        "alpha": Hyper(
            5.0, 1.0, 10.0, log=True, priority=2, at_least=0.0,
            doc="weight of the slow mean", source="paper: 4..10",
        ),
        "beta3_warmup": Hyper(
            0.0, 0.0, 100_000.0, at_least=0.0, doc="steps in which beta3 rises from beta1"
        ),
        "alpha_warmup": Hyper(
            0.0, 0.0, 100_000.0, at_least=0.0, doc="steps in which alpha rises from zero"
        ),
        "eps": ADAM.hypers["eps"],
        "weight_decay": weight_decay(0.0, 5e-3, 1.0, "as AdamW: AlgoPerf 5e-3..1"),
    },
    packs={"betas": ("beta1", "beta2", "beta3")},
    scope="element",
    weight_decay_mode="decoupled",
    batch_scaling="sqrt",
    paper="Pagliardini et al., ICLR 2025, https://arxiv.org/abs/2409.03137",
    summary="Adam with a second, very slow mean of the gradient.",
    when="Long runs of language models; give both warmups the length of the run.",
    equations=r"""
\beta_3(t) = \min\left(\exp\left(\frac{\ln \beta_1 \ln \beta_3}
    {(1 - a) \ln \beta_3 + a \ln \beta_1}\right), \beta_3\right), \;
    a = \min(t / \text{beta3\_warmup}, 1), \quad
\alpha(t) = \alpha \cdot \min(t / \text{alpha\_warmup}, 1) \\
m_t = \beta_1 m_{t-1} + (1 - \beta_1) g_t, \quad
n_t = \beta_3(t) n_{t-1} + (1 - \beta_3(t)) g_t, \quad
v_t = \beta_2 v_{t-1} + (1 - \beta_2) g_t^2 \\
p_t = p_{t-1} - \text{lr} \cdot \frac{m_t / (1 - \beta_1^t) + \alpha(t) n_t}
    {\sqrt{v_t / (1 - \beta_2^t)} + \text{eps}}
    - \text{lr} \cdot \text{weight\_decay} \cdot p_{t-1}
""",
)  # fmt: skip

RULES = (ADEMAMIX,)
