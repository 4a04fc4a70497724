"""LARS: momentum SGD whose step is in every layer a fixed fraction of its weights.

You, Gitman, Ginsburg, "Large Batch Training of Convolutional Networks", 2017,
https://arxiv.org/abs/1708.03888. Parameters with fewer than two dimensions (biases,
normalisation) take plain momentum steps, without ratio and without weight decay.
"""

from __future__ import annotations

import torch
from torch import Tensor

from optimizers.core import Hyper, Rule, Scalar, State, Values, add_scaled, where
from optimizers.rules.ranges import learning_rate, weight_decay


def update(
    grad: Tensor, param: Tensor, state: State, hyper: Values, t: Scalar
) -> tuple[Tensor, State]:
    """The gradient with its decay at the layer's own rate, or the running sum of these."""
    direction = grad
    if param.dim() > 1:
        norm, length = torch.linalg.vector_norm(param), torch.linalg.vector_norm(grad)
        whole = length + hyper.weight_decay * norm
        defined = (norm > 0) & (whole > 0)
        ratio = where(defined, hyper.trust_coefficient * norm / whole, 1.0)
        direction = add_scaled(grad, param, hyper.weight_decay) * ratio
    if not state:
        return direction, state
    buffer = hyper.momentum * state["momentum_buffer"] + direction
    return buffer, {"momentum_buffer": buffer}


def init(param: Tensor, hyper: Values) -> State:
    """No state at all when there is no momentum."""
    return {"momentum_buffer": torch.zeros_like(param)} if hyper.momentum else {}


LARS = Rule(
    name="lars",
    class_name="LARS",
    update=update,
    state=init,
    hypers={
        "lr": learning_rate(1.0, 0.1, 30.0, "0.1..30 with trust_coefficient 1e-3"),
        "momentum": Hyper(
            0.9, 0.7, 0.995, log=True, complement=True, priority=2, at_least=0.0,
            doc="decay of the running sum of steps", source="as for SGD",
        ),
        "weight_decay": weight_decay(0.0, 1e-6, 1e-3, "1e-6..1e-3; paper 5e-4"),
        "trust_coefficient": Hyper(
            1e-3, 1e-4, 1e-1, log=True, at_least=0.0,
            doc="step over weights, per layer; redundant with lr",
        ),
    },
    scope="sums",
    weight_decay_mode="inside",
    batch_scaling="linear",
    summed="momentum",
    paper="You et al., 2017, https://arxiv.org/abs/1708.03888",
    summary="Momentum SGD with a rate per layer, from the norms of weights and gradient.",
    when="Convolutional networks with batches of thousands, with a warmup.",
    equations=r"""
\lambda_t = \text{trust\_coefficient} \cdot
    \frac{\|p_{t-1}\|}{\|g_t\| + \text{weight\_decay} \cdot \|p_{t-1}\|}
\quad \text{(1 if a norm is 0; below two dimensions 1, without decay)} \\
b_t = \text{momentum} \cdot b_{t-1} + \lambda_t (g_t + \text{weight\_decay} \cdot p_{t-1}), \quad
p_t = p_{t-1} - \text{lr} \cdot b_t
""",
)  # fmt: skip

RULES = (LARS,)
