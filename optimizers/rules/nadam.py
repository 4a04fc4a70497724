"""NAdam and NAdamW: Adam that steps from where its momentum leads to.

Dozat, "Incorporating Nesterov Momentum into Adam", ICLR workshop 2016,
https://openreview.net/forum?id=OM0jvwB8jIp57ZJjtNEZ, with the momentum schedule recommended
there. As in torch the mean itself decays with beta1; only its use follows the schedule.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from optimizers.core import Hyper, Rule, Scalar, State, Values, bias_correction, ema, ema_square
from optimizers.rules import adam
from optimizers.rules.adam import ADAM, ADAMW
from optimizers.rules.ranges import BETAS, beta, learning_rate


def momentum(hyper: Values, t: Scalar) -> Scalar:
    """The momentum of update t, which rises from beta1 / 2 to beta1."""
    mu: Scalar = hyper.beta1 * (1 - 0.5 * 0.96 ** (t * hyper.momentum_decay))
    return mu


def update(
    grad: Tensor, param: Tensor, state: State, hyper: Values, t: Scalar
) -> tuple[Tensor, State]:
    """Adam's direction with the next update's momentum and the present gradient."""
    exp_avg = ema(state["exp_avg"], grad, hyper.beta1)
    exp_avg_sq = ema_square(state["exp_avg_sq"], grad, hyper.beta2)
    mu, mu_next = momentum(hyper, t), momentum(hyper, t + 1)
    mu_product = state["mu_product"] * mu
    mean = exp_avg * (mu_next / (1 - mu_product * mu_next)) + grad * ((1 - mu) / (1 - mu_product))
    root = (exp_avg_sq / bias_correction(hyper.beta2, t)).sqrt()
    new = {"exp_avg": exp_avg, "exp_avg_sq": exp_avg_sq, "mu_product": mu_product}
    return mean / (root + hyper.eps), new


def init(param: Tensor, hyper: Values) -> State:
    """Both moments at zero; the product of all momenta, one number, in float64."""
    product = torch.ones((), dtype=torch.float64, device=param.device)
    return {**adam.init(param, hyper), "mu_product": product}


NADAM = Rule(
    name="nadam",
    class_name="NAdam",
    update=update,
    state=init,
    hypers={
        **ADAM.hypers,
        "lr": learning_rate(2e-3, 1e-4, 1e-2, "AlgoPerf 1e-4..1e-2"),
        "beta1": beta(
            0.9, 0.9, 0.996, "AlgoPerf: 1-beta1 4e-3..0.1", "decay of the mean", priority=2
        ),
        "momentum_decay": Hyper(
            4e-3, 1e-3, 1e-1, log=True, at_least=0.0, doc="how fast the momentum rises to beta1"
        ),
    },
    packs=BETAS,
    scope="element",
    weight_decay_mode="l2",
    batch_scaling="sqrt",
    paper="Dozat, ICLR workshop 2016, https://openreview.net/forum?id=OM0jvwB8jIp57ZJjtNEZ",
    summary="Adam with Nesterov's momentum, which rises during the first updates.",
    when="As Adam, and a little faster early on; with weight decay prefer NAdamW.",
    equations=r"""
\mu_t = \beta_1 (1 - \tfrac{1}{2} \cdot 0.96^{t \cdot \text{momentum\_decay}}), \quad
m_t = \beta_1 m_{t-1} + (1 - \beta_1) g_t, \quad v_t = \beta_2 v_{t-1} + (1 - \beta_2) g_t^2 \\
p_t = p_{t-1} - \text{lr} \cdot
    \frac{\mu_{t+1} m_t / (1 - \prod_{i=1}^{t+1} \mu_i)
        + (1 - \mu_t) g_t / (1 - \prod_{i=1}^t \mu_i)}
    {\sqrt{v_t / (1 - \beta_2^t)} + \text{eps}}
""",
)

NADAMW = replace(
    NADAM,
    name="nadamw",
    class_name="NAdamW",
    hypers={**NADAM.hypers, "weight_decay": ADAMW.hypers["weight_decay"]},
    weight_decay_mode="decoupled",
    paper=NADAM.paper + "; decay as Loshchilov and Hutter, ICLR 2019",
    summary="NAdam with weight decay applied to the parameter instead of the gradient.",
    when="As AdamW; strong in AlgoPerf's comparison of tuned optimizers.",
    equations=NADAM.equations.rstrip()
    + r" - \text{lr} \cdot \text{weight\_decay} \cdot p_{t-1}"
    + "\n",
)

RULES = (NADAM, NADAMW)
