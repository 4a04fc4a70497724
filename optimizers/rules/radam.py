"""RAdam: Adam that waits for its second moment to be reliable, a warmup by itself.

Liu et al., "On the Variance of the Adaptive Learning Rate and Beyond", ICLR 2020,
https://arxiv.org/abs/1908.03265.
"""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from optimizers.core import Scalar, State, Values, bias_correction, ema, ema_square, where
from optimizers.rules.adam import ADAM, init
from optimizers.rules.ranges import weight_decay


def update(
    grad: Tensor, param: Tensor, state: State, hyper: Values, t: Scalar
) -> tuple[Tensor, State]:
    """Adam's direction, rectified; momentum alone while fewer than 5 squares are averaged."""
    exp_avg = ema(state["exp_avg"], grad, hyper.beta1)
    exp_avg_sq = ema_square(state["exp_avg_sq"], grad, hyper.beta2)
    correction2 = bias_correction(hyper.beta2, t)
    rho_limit = 2 / (1 - hyper.beta2) - 1
    rho = rho_limit - 2 * t * hyper.beta2**t / correction2
    reliable = rho > 5
    # both sides of a choice are computed: 5 keeps the unused root real
    rho, rho_limit = where(reliable, rho, 5.0), where(reliable, rho_limit, 5.0)
    variance_ratio = (rho - 4) * (rho - 2) * rho_limit / ((rho_limit - 4) * (rho_limit - 2) * rho)
    rectified = (variance_ratio * correction2) ** 0.5
    root = where(reliable, exp_avg_sq.sqrt() + hyper.eps, 1.0)
    scale = where(reliable, rectified, 1.0) / bias_correction(hyper.beta1, t)
    direction = exp_avg / root * scale
    return direction, {"exp_avg": exp_avg, "exp_avg_sq": exp_avg_sq}


RADAM = replace(
    ADAM,
    name="radam",
    class_name="RAdam",
    update=update,
    state=init,
    hypers={
        **ADAM.hypers,
        "weight_decay": weight_decay(0.0, 5e-3, 1.0, "as AdamW: AlgoPerf 5e-3..1"),
    },
    weight_decay_mode="decoupled",
    torch_group={},
    paper="Liu et al., ICLR 2020, https://arxiv.org/abs/1908.03265",
    summary="Adam with a built-in warmup, from the variance of its own denominator.",
    when="As AdamW, when the length of a warmup is not worth a search.",
    equations=r"""
m_t = \beta_1 m_{t-1} + (1 - \beta_1) g_t, \quad v_t = \beta_2 v_{t-1} + (1 - \beta_2) g_t^2 \\
\rho_\infty = 2 / (1 - \beta_2) - 1, \quad
\rho_t = \rho_\infty - 2 t \beta_2^t / (1 - \beta_2^t), \quad
r_t = \sqrt{\frac{(\rho_t - 4)(\rho_t - 2) \rho_\infty}
    {(\rho_\infty - 4)(\rho_\infty - 2) \rho_t}} \\
p_t = p_{t-1} - \text{lr} \cdot \frac{m_t}{1 - \beta_1^t} \cdot
    \begin{cases}
        r_t \sqrt{1 - \beta_2^t} / (\sqrt{v_t} + \text{eps}) & \rho_t > 5 \\
        1 & \text{else}
    \end{cases}
    - \text{lr} \cdot \text{weight\_decay} \cdot p_{t-1}
""",
)

RULES = (RADAM,)
