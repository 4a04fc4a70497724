"""SGD: plain, with momentum, dampening and Nesterov's look-ahead.

Polyak, "Some methods of speeding up the convergence of iteration methods", 1964. Sutskever,
Martens, Dahl, Hinton, "On the importance of initialization and momentum in deep learning", ICML
2013 (Nesterov's form as used here and in torch).
"""

from __future__ import annotations

import torch
from torch import Tensor

from optimizers.core import Hyper, Option, Rule, Scalar, State, Values, add_scaled, where
from optimizers.rules.ranges import learning_rate, weight_decay


def update(
    grad: Tensor, param: Tensor, state: State, hyper: Values, t: Scalar
) -> tuple[Tensor, State]:
    """One direction; without a buffer in the state this is plain SGD."""
    if not state:
        return grad, state
    # the first gradient enters the zero buffer undampened
    weight = where(t == 1, 1.0, 1 - hyper.dampening)
    buffer = add_scaled(hyper.momentum * state["momentum_buffer"], grad, weight)
    direction = add_scaled(grad, buffer, hyper.momentum) if hyper.nesterov else buffer
    return direction, {"momentum_buffer": buffer}


def init(param: Tensor, hyper: Values) -> State:
    """No state at all when there is no momentum."""
    return {"momentum_buffer": torch.zeros_like(param)} if hyper.momentum else {}


def check(hyper: Values) -> str | None:
    """Nesterov's form is only defined with momentum and without dampening."""
    if hyper.nesterov and (hyper.momentum == 0 or hyper.dampening != 0):
        return "nesterov=True is not valid; allowed: with momentum > 0 and dampening = 0"
    return None


SGD = Rule(
    name="sgd",
    class_name="SGD",
    update=update,
    state=init,
    hypers={
        "lr": learning_rate(1e-2, 1e-3, 5.0, "1e-3..3 plain, 1e-3..5 with momentum"),
        "momentum": Hyper(
            0.0, 0.7, 0.995, log=True, complement=True, priority=2, at_least=0.0,
            doc="decay of the gradient's running sum", source="AlgoPerf: 1-momentum 5e-3..0.3",
        ),
        "dampening": Hyper(0.0, 0.0, 0.9, doc="part of the gradient kept out of the running sum"),
        "weight_decay": weight_decay(0.0, 1e-7, 5e-4, "AlgoPerf 1e-7..5e-5, widened to 5e-4"),
    },
    options={"nesterov": Option(False, (False, True), "step from the point momentum leads to")},
    scope="element",
    weight_decay_mode="l2",
    batch_scaling="linear",
    linear=True,
    summed="momentum",
    sparse=lambda hyper: hyper.momentum == 0,
    check=check,
    paper="Sutskever et al., ICML 2013, https://proceedings.mlr.press/v28/sutskever13.html",
    summary="Steps along the gradient, or along its running sum.",
    when="Vision models from scratch, with momentum 0.9 and a cosine or step schedule.",
    equations=r"""
b_1 = g_1, \quad b_t = \text{momentum} \cdot b_{t-1} + (1 - \text{dampening}) \cdot g_t \\
p_t = p_{t-1} - \text{lr} \cdot b_t
\quad \text{(nesterov: } p_t = p_{t-1} - \text{lr} \cdot (g_t + \text{momentum} \cdot b_t) \text{)}
""",
)  # fmt: skip

RULES = (SGD,)
