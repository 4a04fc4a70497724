"""Muon: momentum made orthogonal by a Newton-Schulz iteration, for the hidden matrices.

Jordan et al., "Muon: An optimizer for hidden layers in neural networks", 2024,
https://kellerjordan.github.io/posts/muon. Liu et al., "Muon is Scalable for LLM Training", 2025,
https://arxiv.org/abs/2502.16982 (``adjust_lr_fn="match_rms_adamw"``).

Tensors with more than two dimensions (convolutions) are flattened to ``(out, everything else)``.
Vectors and scalars go to AdamW with ``adamw_lr`` in the same optimizer; so should embeddings and
the output head, which `create` sees in a model and a group marks with ``"rule": "adamw"``:

    Muon([{"params": body}, {"params": [*embedding, *head], "rule": "adamw"}])

The iteration runs in the precision of the arithmetic. torch's always runs in bfloat16.
"""

from __future__ import annotations

from math import prod

import torch
from torch import Tensor

from optimizers.core import Hyper, Option, Partner, Rule, Scalar, State, Values, ema
from optimizers.rules.ranges import beta, epsilon, learning_rate, weight_decay

LONG = 2  # of the longer side over the shorter: Gram matrices then need fewer operations
# Rounding leaves Gram matrices of singular matrices slightly indefinite, and each step makes that
# a² times worse: 1e-7 becomes 2e-2 in five, which is harmless.
RESTART = 5


def is_matrix(param: Tensor) -> bool:
    """Whether a parameter has rows and columns."""
    return param.dim() >= 2


def polynomial(gram: Tensor, hyper: Values) -> Tensor:
    """``b·G + c·G²``: the iteration's factor of X, but for ``a``."""
    if isinstance(hyper.ns_b, Tensor):
        scaled: Tensor = hyper.ns_b * gram + hyper.ns_c * (gram @ gram)
        return scaled
    return torch.addmm(gram, gram, gram, beta=hyper.ns_b, alpha=hyper.ns_c)


def gram_of(x: Tensor, tall: bool) -> Tensor:
    """The smaller of the two Gram matrices."""
    return x.mT @ x if tall else x @ x.mT


def times(factor: Tensor, x: Tensor, tall: bool) -> Tensor:
    """A symmetric factor on the shorter side of X, which needs no transposed copy."""
    return x @ factor if tall else factor @ x


def by_products(x: Tensor, hyper: Values, steps: int, tall: bool = False) -> Tensor:
    """The iteration as it is written."""
    for _ in range(steps):
        x = hyper.ns_a * x + times(polynomial(gram_of(x, tall), hyper), x, tall)
    return x


def by_grams(x: Tensor, hyper: Values, steps: int, tall: bool = False) -> Tensor:
    """The same iteration on the Gram matrix alone, which is small if X is long.

    X enters only at both ends: with ``P = a + b·G + c·G²``, ``P X`` has the Gram matrix ``P G P``,
    and all these matrices commute.
    """
    gram = gram_of(x, tall)
    unit = torch.eye(gram.shape[0], dtype=x.dtype, device=x.device)
    product = unit
    for step in range(steps):
        factor = hyper.ns_a * unit + polynomial(gram, hyper)
        product = factor @ product if step else factor
        if step + 1 < steps:
            gram = factor @ (factor @ gram)
    return times(product, x, tall)


def orthogonalized(matrix: Tensor, hyper: Values) -> Tensor:
    """A matrix with the singular vectors of ``matrix`` and singular values near 1."""
    tall = matrix.shape[0] > matrix.shape[1]
    short, long = sorted(matrix.shape)
    x: Tensor = matrix / matrix.norm().clamp(min=hyper.eps)
    iterate = by_grams if long >= LONG * short else by_products
    for done in range(0, hyper.ns_steps, RESTART):
        x = iterate(x, hyper, min(RESTART, hyper.ns_steps - done), tall)
    return x


def scale(rows: int, columns: int, adjust_lr_fn: str | None) -> float:
    """What keeps the size of the update alike for matrices of all shapes."""
    if adjust_lr_fn == "match_rms_adamw":
        return float(0.2 * max(rows, columns) ** 0.5)
    return float(max(1.0, rows / columns) ** 0.5)


def update(
    grad: Tensor, param: Tensor, state: State, hyper: Values, t: Scalar
) -> tuple[Tensor, State]:
    """The orthogonalized momentum, scaled by the shape of the matrix."""
    buffer = ema(state["momentum_buffer"], grad, hyper.momentum)
    seen = ema(grad, buffer, 1 - hyper.momentum) if hyper.nesterov else buffer
    rows, columns = param.shape[0], prod(param.shape[1:])
    matrix = orthogonalized(seen.reshape(rows, columns), hyper)
    direction = matrix.reshape(param.shape) * scale(rows, columns, hyper.adjust_lr_fn)
    return direction, {"momentum_buffer": buffer}


def init(param: Tensor, hyper: Values) -> State:
    """One momentum buffer, zero."""
    return {"momentum_buffer": torch.zeros_like(param)}


MUON = Rule(
    name="muon",
    class_name="Muon",
    update=update,
    state=init,
    partner=Partner(
        "adamw",
        is_matrix,
        {
            "lr": "adamw_lr",
            "betas": "adamw_betas",
            "eps": "adamw_eps",
            "weight_decay": "weight_decay",
        },
    ),
    hypers={
        "lr": learning_rate(1e-3, 1e-3, 0.128, "author: 0.02; marin 8e-3..0.128, best to 0.016"),
        "weight_decay": weight_decay(0.1, 1e-2, 0.3, "author: 0.01; marin 0, 0.1, 0.2"),
        "momentum": beta(
            0.95, 0.8, 0.98, "marin 0.8..0.98", "decay of the gradient's mean", priority=2
        ),
        "ns_a": Hyper(3.4445, 2.0, 4.0, doc="Newton-Schulz: factor of X"),
        "ns_b": Hyper(-4.7750, -6.0, -1.0, doc="Newton-Schulz: factor of X X' X"),
        "ns_c": Hyper(2.0315, 0.3, 3.0, doc="Newton-Schulz: factor of (X X')² X"),
        "eps": epsilon(1e-7, 1e-12, 1e-6, "no effect", doc="least norm of the momentum"),
        "adamw_lr": Hyper(
            3e-4, 1e-4, 1e-2, log=True, priority=1, at_least=0.0,
            doc="learning rate of the parameters that AdamW gets",
            source="author: 3e-4; marin 8e-4..3.2e-3",
        ),
        "adamw_beta1": beta(0.9, 0.5, 0.98, "as AdamW", "decay of AdamW's mean"),
        "adamw_beta2": beta(0.95, 0.9, 0.999, "author: 0.95", "decay of AdamW's square"),
        "adamw_eps": epsilon(1e-10, 1e-12, 1e-6, "author: 1e-10", doc="AdamW's eps"),
    },
    options={
        "nesterov": Option(True, (False, True), "interpolate the momentum with the gradient"),
        "ns_steps": Option(5, range(1, 100), "Newton-Schulz iterations"),
        "adjust_lr_fn": Option(
            None,
            (None, "original", "match_rms_adamw"),
            "scale by shape: sqrt(max(1, rows/columns)), or AdamW's size 0.2·sqrt(max(rows,"
            " columns)), with which AdamW's learning rate can be used; None is the former",
        ),
    },
    packs={
        "ns_coefficients": ("ns_a", "ns_b", "ns_c"),
        "adamw_betas": ("adamw_beta1", "adamw_beta2"),
    },
    scope="tensor",
    weight_decay_mode="decoupled",
    batch_scaling="sqrt",
    paper="Jordan et al., 2024, https://kellerjordan.github.io/posts/muon",
    summary="Momentum with all singular values made equal; AdamW for what is no matrix.",
    when="Hidden layers of transformers and convolutional networks, trained from scratch.",
    equations=r"""
b_t = \text{momentum} \cdot b_{t-1} + (1 - \text{momentum}) g_t, \quad
u_t = (1 - \text{momentum}) g_t + \text{momentum} \cdot b_t \\
X_0 = u_t / \|u_t\|_F, \quad X_{i+1} = a X_i + (b X_i X_i^T + c (X_i X_i^T)^2) X_i,
    \quad i < \text{ns\_steps} \\
p_t = p_{t-1} - \text{lr} \cdot (\sqrt{\max(1, \text{rows} / \text{columns})} \, X_\text{ns\_steps}
    + \text{weight\_decay} \cdot p_{t-1})
""",
)  # fmt: skip

RULES = (MUON,)
