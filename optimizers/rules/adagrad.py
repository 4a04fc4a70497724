"""Adagrad: each entry's step shrinks with the root of all the squares it has seen.

Duchi, Hazan, Singer, "Adaptive Subgradient Methods for Online Learning and Stochastic
Optimization", JMLR 12, 2011, https://jmlr.org/papers/v12/duchi11a.html.
"""

from __future__ import annotations

import torch
from torch import Tensor

from optimizers.core import Hyper, Rule, Scalar, State, Values
from optimizers.rules.ranges import epsilon, learning_rate, weight_decay


def update(
    grad: Tensor, param: Tensor, state: State, hyper: Values, t: Scalar
) -> tuple[Tensor, State]:
    """The gradient over the root of the sum of squares, slowed down by lr_decay."""
    total = torch.addcmul(state["sum"], grad, grad)
    slowdown = 1 + (t - 1) * hyper.lr_decay
    return grad / ((total.sqrt() + hyper.eps) * slowdown), {"sum": total}


def init(param: Tensor, hyper: Values) -> State:
    """The sum may start above zero, which makes the first steps smaller."""
    return {"sum": torch.full_like(param, hyper.initial_accumulator_value)}


ADAGRAD = Rule(
    name="adagrad",
    class_name="Adagrad",
    update=update,
    state=init,
    hypers={
        "lr": learning_rate(1e-2, 1e-3, 1.0, "Sivaprasad et al. 2020: 10^N(-2, 1.2), narrowed"),
        "lr_decay": Hyper(0.0, 0.0, 0.1, at_least=0.0, doc="lr falls as 1 / (1 + lr_decay·step)"),
        "weight_decay": weight_decay(0.0, 1e-6, 1e-3, "1e-6..1e-3 as an L2 penalty"),
        "initial_accumulator_value": Hyper(
            0.0, 0.0, 1.0, at_least=0.0, doc="where the sum of squares starts"
        ),
        "eps": epsilon(1e-10, 1e-10, 1e-6, "1e-10 (torch) to 1e-6"),
    },
    scope="element",
    weight_decay_mode="l2",
    state_first=True,
    batch_scaling="sqrt",
    sparse=lambda hyper: True,
    paper="Duchi et al., JMLR 2011, https://jmlr.org/papers/v12/duchi11a.html",
    summary="The gradient over the root of the sum of all its squares.",
    when="Sparse features and embeddings; elsewhere its steps become too small in long runs.",
    equations=r"""
s_0 = \text{initial\_accumulator\_value}, \quad s_t = s_{t-1} + g_t^2 \\
p_t = p_{t-1} - \frac{\text{lr}}{1 + (t - 1) \cdot \text{lr\_decay}}
    \cdot \frac{g_t}{\sqrt{s_t} + \text{eps}}
""",
)

RULES = (ADAGRAD,)
