"""ADOPT: Adam that normalises by the past second moment, so that it converges for any beta2.

Taniguchi et al., "ADOPT: Modified Adam Can Converge with Any β2 with the Optimal Rate", NeurIPS
2024, https://arxiv.org/abs/2411.02853, algorithm 2 (clipped). The first gradient only starts the
second moment: nothing moves, by weight decay neither, as in the authors' code.
"""

from __future__ import annotations

from torch import Tensor

from optimizers.core import Rule, Scalar, State, Values, at_least, clip, ema, ema_square, where
from optimizers.rules.adam import ADAM, init
from optimizers.rules.ranges import BETAS, beta, epsilon, learning_rate, weight_decay


def update(
    grad: Tensor, param: Tensor, state: State, hyper: Values, t: Scalar
) -> tuple[Tensor, State]:
    """The running mean of clipped gradients, each over the root of the squares before it."""
    root = state["exp_avg_sq"].sqrt()
    limit = (t - 1) ** 0.25  # zero in the first update, which leaves the mean at zero
    normalised = clip(grad / at_least(root, hyper.eps), limit)
    exp_avg = ema(state["exp_avg"], normalised, hyper.beta1)
    exp_avg_sq = ema_square(state["exp_avg_sq"], grad, where(t == 1, 0.0, hyper.beta2))
    return exp_avg, {"exp_avg": exp_avg, "exp_avg_sq": exp_avg_sq}


ADOPT = Rule(
    name="adopt",
    class_name="ADOPT",
    update=update,
    state=init,
    hypers={
        "lr": learning_rate(1e-3, 1e-4, 1e-2, "authors: 1e-3; as Adam 1e-4..1e-2"),
        "beta1": ADAM.hypers["beta1"],
        "beta2": beta(0.9999, 0.95, 0.99999, "authors: 0.9999", "decay of the square"),
        "eps": epsilon(1e-6, 1e-8, 1e-3, "authors: 1e-6", doc="least root of the square"),
        "weight_decay": weight_decay(0.0, 5e-3, 1.0, "as AdamW: AlgoPerf 5e-3..1"),
    },
    packs=BETAS,
    scope="element",
    weight_decay_mode="decoupled",
    batch_scaling="sqrt",
    still_first=True,
    paper="Taniguchi et al., NeurIPS 2024, https://arxiv.org/abs/2411.02853",
    summary="Adam that normalises each gradient by the squares before it.",
    when="As AdamW, where Adam's convergence depends on a well-chosen beta2.",
    equations=r"""
v_1 = g_1^2, \; m_1 = 0, \; p_1 = p_0; \quad t > 1: \quad
m_t = \beta_1 m_{t-1} + (1 - \beta_1)
    \operatorname{clip}\left(\frac{g_t}{\max(\sqrt{v_{t-1}}, \text{eps})}, (t - 1)^{1/4}\right) \\
p_t = p_{t-1} - \text{lr} \cdot m_t - \text{lr} \cdot \text{weight\_decay} \cdot p_{t-1}, \quad
v_t = \beta_2 v_{t-1} + (1 - \beta_2) g_t^2
""",
)

RULES = (ADOPT,)
