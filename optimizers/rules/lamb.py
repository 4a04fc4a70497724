"""LAMB: Adam's step, as long in every layer as the layer's weights allow.

You et al., "Large Batch Optimization for Deep Learning: Training BERT in 76 minutes", ICLR 2020,
https://arxiv.org/abs/1904.00962.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from optimizers.core import Scalar, State, Values, add_scaled, where
from optimizers.rules import adam
from optimizers.rules.adam import ADAM
from optimizers.rules.ranges import beta, epsilon, learning_rate, weight_decay


def update(
    grad: Tensor, param: Tensor, state: State, hyper: Values, t: Scalar
) -> tuple[Tensor, State]:
    """Adam's direction and the decay, scaled to the norm of the parameter."""
    direction, state = adam.update(grad, param, state, hyper, t)
    direction = add_scaled(direction, param, hyper.weight_decay)
    norm, length = torch.linalg.vector_norm(param), torch.linalg.vector_norm(direction)
    defined = (norm > 0) & (length > 0)
    return direction * where(defined, norm / length, 1.0), state


LAMB = replace(
    ADAM,
    name="lamb",
    class_name="LAMB",
    update=update,
    hypers={
        **ADAM.hypers,
        "lr": learning_rate(1e-3, 1e-4, 1e-2, "AlgoPerf 1e-4..1e-2"),
        "beta1": beta(
            0.9, 0.7, 0.95, "AlgoPerf: 1-beta1 0.05..0.3", "decay of the mean", priority=2
        ),
        "eps": epsilon(1e-6, 1e-8, 1e-3, "paper: 1e-6"),
        "weight_decay": weight_decay(1e-2, 1e-3, 1.0, "AlgoPerf 1e-3..1"),
    },
    scope="sums",
    weight_decay_mode="inside",
    torch_group={},
    paper="You et al., ICLR 2020, https://arxiv.org/abs/1904.00962",
    summary="Adam with every layer's step proportional to the norm of its weights.",
    when="Batches of thousands, above all for transformers, with a warmup.",
    equations=r"""
m_t = \beta_1 m_{t-1} + (1 - \beta_1) g_t, \quad v_t = \beta_2 v_{t-1} + (1 - \beta_2) g_t^2 \\
r_t = \frac{m_t / (1 - \beta_1^t)}{\sqrt{v_t / (1 - \beta_2^t)} + \text{eps}}
    + \text{weight\_decay} \cdot p_{t-1}, \quad
p_t = p_{t-1} - \text{lr} \cdot \frac{\|p_{t-1}\|}{\|r_t\|} r_t
\quad \text{(ratio 1 if a norm is 0)}
""",
)

RULES = (LAMB,)
