"""RMSprop: the gradient over the root of its running square, optionally centred.

Tieleman, Hinton, "Lecture 6.5: RMSProp", Coursera, 2012. Graves, "Generating Sequences With
Recurrent Neural Networks", 2013, https://arxiv.org/abs/1308.0850 (centred, with momentum). As in
torch: eps is outside the root, the averages start at zero, the learning rate outside the buffer.
"""

from __future__ import annotations

import torch
from torch import Tensor

from optimizers.core import Hyper, Option, Rule, Scalar, State, Values, ema, ema_square
from optimizers.rules.ranges import beta, epsilon, learning_rate, weight_decay


def update(
    grad: Tensor, param: Tensor, state: State, hyper: Values, t: Scalar
) -> tuple[Tensor, State]:
    """The scaled gradient, or its running sum when there is a buffer for it."""
    new = {"square_avg": ema_square(state["square_avg"], grad, hyper.alpha)}
    variance = new["square_avg"]
    if hyper.centered:
        new["grad_avg"] = ema(state["grad_avg"], grad, hyper.alpha)
        # of equal gradients nothing is left but rounding, which may be negative
        variance = (variance - new["grad_avg"] ** 2).clamp(min=0)
    direction = grad / (variance.sqrt() + hyper.eps)
    if "momentum_buffer" in state:
        direction = direction + hyper.momentum * state["momentum_buffer"]
        new["momentum_buffer"] = direction
    return direction, new


def init(param: Tensor, hyper: Values) -> State:
    """One average, one more when centred, and a buffer with momentum; all zero."""
    wanted = {"square_avg": True, "momentum_buffer": hyper.momentum, "grad_avg": hyper.centered}
    return {key: torch.zeros_like(param) for key, value in wanted.items() if value}


RMSPROP = Rule(
    name="rmsprop",
    class_name="RMSprop",
    update=update,
    state=init,
    hypers={
        "lr": learning_rate(1e-3, 1e-5, 1e-1, "1e-5..1e-1"),
        "alpha": beta(0.99, 0.9, 0.99, "0.9 (Hinton) to 0.99 (torch)", "decay of the square"),
        "eps": epsilon(1e-8, 1e-10, 1.0, "Choi et al. 2019: up to 1"),
        "weight_decay": weight_decay(0.0, 1e-6, 1e-2, "1e-6..1e-2 as an L2 penalty"),
        "momentum": Hyper(
            0.0, 0.7, 0.995, log=True, complement=True, priority=2, at_least=0.0,
            doc="decay of the running sum of steps", source="as for SGD",
        ),
    },
    options={"centered": Option(False, (False, True), "divide by the deviation, not the square")},
    scope="element",
    weight_decay_mode="l2",
    batch_scaling="sqrt",
    summed="momentum",
    paper="Tieleman and Hinton, 2012; Graves, 2013, https://arxiv.org/abs/1308.0850",
    summary="The gradient over the root of its running square.",
    when="Reinforcement learning and recurrent models where Adam's momentum disturbs.",
    equations=r"""
v_t = \text{alpha} \cdot v_{t-1} + (1 - \text{alpha}) \cdot g_t^2
\quad \text{(centered: minus } m_t^2,
    \; m_t = \text{alpha} \cdot m_{t-1} + (1 - \text{alpha}) \cdot g_t \text{)} \\
b_t = \text{momentum} \cdot b_{t-1} + \frac{g_t}{\sqrt{v_t} + \text{eps}}, \quad
p_t = p_{t-1} - \text{lr} \cdot b_t
""",
)  # fmt: skip

RULES = (RMSPROP,)
