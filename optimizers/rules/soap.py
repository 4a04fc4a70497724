"""SOAP: Adam in the eigenbasis of Shampoo's preconditioner.

Vyas, Morwani, Zhao, Shapira, Brandfonbrener, Janson, Kakade, "SOAP: Improving and Stabilizing
Shampoo using Adam", ICLR 2025, https://arxiv.org/abs/2409.11321, algorithm 3, with the authors'
implementation in what the paper leaves open: the first gradient only starts the bases, moves no
parameter and does not count for the bias correction; a refresh is one power iteration and a QR
decomposition, with eigenvectors sorted by their estimated eigenvalues.

Both moments are kept in the bases and turned when these are, so that a step rotates the gradient
and its direction alone; rotations are linear, so nothing else changes.

Every dimension of at most ``max_precond_dim`` has a Gram matrix and a basis; the others, vectors
and scalars are left as they are, which is plain Adam where no dimension is left.
"""

from __future__ import annotations

import torch
from torch import Tensor

from optimizers.core import (
    Hyper,
    Rule,
    Scalar,
    State,
    Values,
    bias_correction,
    choose,
    ema,
    ema_square,
    where,
)
from optimizers.rules.ranges import BETAS, beta, epsilon, learning_rate, weight_decay

STRIP = 192  # rows of a product of which only the part right of the diagonal is needed
LARGE = 2**16  # entries whose state is written over; what is smaller may be one of a stack


def rotate(tensor: Tensor, state: State, *, back: bool = False) -> Tensor:
    """A tensor in the bases of its dimensions, or back from them."""
    for dim in range(tensor.dim()):
        # one dimension is contracted away in front, and comes back behind the others
        if f"basis_{dim}" in state:
            basis = state[f"basis_{dim}"]
            tensor = torch.tensordot(tensor, basis.mT if back else basis, dims=([0], [0]))
        else:
            tensor = tensor.movedim(0, -1)
    return tensor


def grams(grad: Tensor, state: State, decay: Scalar) -> State:
    """Shampoo's running Gram matrix of each dimension, by its name in the state.

    Only entries on and right of the diagonal count (`symmetric`): those left of it may be old.
    """
    new: State = {}
    for dim in range(grad.dim()):
        if f"gram_{dim}" in state:
            rows, old = grad.movedim(dim, 0).flatten(1), state[f"gram_{dim}"]
            if isinstance(decay, Tensor):
                new[f"gram_{dim}"] = ema(old, rows @ rows.mT, decay)
            elif grad.numel() > LARGE:
                new[f"gram_{dim}"] = accumulated(old, rows, decay)
            else:
                new[f"gram_{dim}"] = torch.addmm(old, rows, rows.mT, beta=decay, alpha=1 - decay)
    return new


def accumulated(gram: Tensor, rows: Tensor, decay: float) -> Tensor:
    """``decay·gram + (1 - decay)·rows rows'``, written over ``gram``, in half the operations."""
    for start in range(0, len(gram), STRIP):
        strip, rest = slice(start, start + STRIP), slice(start, None)
        gram[strip, rest].addmm_(rows[strip], rows[rest].mT, beta=decay, alpha=1 - decay)
    return gram


def symmetric(gram: Tensor) -> Tensor:
    """A Gram matrix whose entries left of the diagonal count, too; a large one is completed."""
    if gram.shape[-1] <= STRIP:
        return gram.triu() + gram.triu(1).mT
    for start in range(0, len(gram), STRIP):
        strip, rest = slice(start, start + STRIP), slice(start + STRIP, None)
        gram[rest, strip].copy_(gram[strip, rest].mT)
    return gram


def first_bases(state: State) -> State:
    """The eigenvectors of the Gram matrices, largest eigenvalue first; nothing has moments yet."""
    new = moments_of(state)
    for name in [name for name in state if name.startswith("gram")]:
        vectors = torch.linalg.eigh(symmetric(state[name])).eigenvectors
        new[name.replace("gram", "basis")] = vectors.flip(-1)
    return new


def refreshed_bases(state: State) -> State:
    """One power iteration and QR for each basis; the moments follow."""
    new = moments_of(state)
    for name in [name for name in state if name.startswith("gram")]:
        basis = state[name.replace("gram", "basis")]
        power = symmetric(state[name]) @ basis
        order = torch.argsort((basis * power).sum(0), descending=True)
        dim = int(name.removeprefix("gram_"))
        new["exp_avg_sq"] = new["exp_avg_sq"].index_select(dim, order)
        new[name.replace("gram", "basis")] = orthonormal(power.index_select(1, order))
    new["exp_avg"] = rotate(rotate(state["exp_avg"], state, back=True), new)
    return new


def orthonormal(matrix: Tensor) -> Tensor:
    """The Q of a QR decomposition, without the time that R would take."""
    product: Tensor = torch.linalg.householder_product(*torch.geqrf(matrix))
    return product


def moments_of(state: State) -> State:
    """Adam's moments, which are kept in the bases."""
    return {key: state[key] for key in ("exp_avg", "exp_avg_sq")}


def kept_bases(state: State) -> State:
    """What the bases of the other functions replace, as it was."""
    return {key: value for key, value in state.items() if not key.startswith("gram")}


def adam_step(grad: Tensor, state: State, hyper: Values, t: Scalar) -> State:
    """Adam in the bases; ``t`` counts the steps that moved something."""
    exp_avg, exp_avg_sq = averaged(rotate(grad, state), state, hyper)
    t = where(t < 1, 1.0, t)
    correction = bias_correction(hyper.beta2, t) ** 0.5 / bias_correction(hyper.beta1, t)
    scaled = exp_avg_sq.sqrt().add_(hyper.eps).reciprocal_().mul_(exp_avg).mul_(correction)
    return {
        "direction": rotate(scaled, state, back=True),
        "exp_avg": exp_avg,
        "exp_avg_sq": exp_avg_sq,
    }


def averaged(grad: Tensor, state: State, hyper: Values) -> tuple[Tensor, Tensor]:
    """Adam's moments; of large parameters they are written over the old ones."""
    exp_avg, exp_avg_sq = state["exp_avg"], state["exp_avg_sq"]
    vector = isinstance(hyper.beta1, Tensor) or isinstance(hyper.beta2, Tensor)
    if vector or grad.numel() <= LARGE:
        return ema(exp_avg, grad, hyper.beta1), ema_square(exp_avg_sq, grad, hyper.beta2)
    exp_avg.lerp_(grad, 1 - hyper.beta1)
    return exp_avg, exp_avg_sq.mul_(hyper.beta2).addcmul_(grad, grad, value=1 - hyper.beta2)


def no_step(grad: Tensor, state: State) -> State:
    """What becomes of the first gradient, which only starts the bases."""
    return {"direction": torch.zeros_like(grad), **moments_of(state)}


def update(
    grad: Tensor, param: Tensor, state: State, hyper: Values, t: Scalar
) -> tuple[Tensor, State]:
    """A step in the present bases; the gradient enters them only afterwards."""
    first, due = t == 1, (t - 1) % hyper.precondition_frequency == 0
    step = choose(first, lambda: no_step(grad, state), lambda: adam_step(grad, state, hyper, t - 1))
    direction = step.pop("direction")
    decay = where(hyper.shampoo_beta < 0, hyper.beta2, hyper.shampoo_beta)
    new = {**state, **step, **grams(grad, state, decay)}
    bases = choose(
        first,
        lambda: first_bases(new),
        lambda: choose(due, lambda: refreshed_bases(new), lambda: kept_bases(new)),
    )
    return direction, {**new, **bases}


def init(param: Tensor, hyper: Values) -> State:
    """Moments and Gram matrices at zero; the bases are found from the first gradient."""
    state = {"exp_avg": torch.zeros_like(param), "exp_avg_sq": torch.zeros_like(param)}
    for dim, size in enumerate(param.shape if param.dim() > 1 else ()):
        if size <= hyper.max_precond_dim:
            state[f"gram_{dim}"] = param.new_zeros(size, size)
            state[f"basis_{dim}"] = param.new_zeros(size, size)
    return state


SOAP = Rule(
    name="soap",
    class_name="SOAP",
    update=update,
    state=init,
    still_first=True,
    hypers={
        "lr": learning_rate(3e-3, 3e-4, 2e-2, "authors: 3e-3; marin 4e-3..1.6e-2"),
        "beta1": beta(0.95, 0.85, 0.98, "authors and marin: 0.95", "decay of the mean", priority=2),
        "beta2": beta(0.95, 0.9, 0.999, "authors: 0.95; marin 0.98..0.99", "decay of the square"),
        "shampoo_beta": Hyper(
            -1.0, 0.9, 0.99, at_least=-1.0, below=1.0,
            doc="decay of the Gram matrices; beta2 if negative", source="marin 0.95..0.98",
        ),
        "eps": epsilon(1e-8, 1e-15, 1e-6, "marin: 1e-15..1e-8"),
        "weight_decay": weight_decay(0.01, 1e-2, 0.3, "authors: 0.01; marin 0, 0.1, 0.2"),
        "precondition_frequency": Hyper(
            10, 1, 100, log=True, integer=True, at_least=1,
            doc="steps between two refreshes of the bases", source="authors: 10; marin 1..10",
        ),
        "max_precond_dim": Hyper(
            10_000, 256, 20_000, log=True, integer=True, at_least=0,
            doc="largest dimension that gets a basis; time grows with its cube, memory its square",
        ),
    },
    packs=BETAS,
    scope="tensor",
    weight_decay_mode="decoupled",
    batch_scaling="sqrt",
    paper="Vyas et al., ICLR 2025, https://arxiv.org/abs/2409.11321",
    summary="Adam in the eigenbasis of Shampoo's preconditioner.",
    when="Large batches, where steps count more than time; as few hyperparameters as AdamW.",
    equations=r"""
m_t = \beta_1 m_{t-1} + (1 - \beta_1) g_t, \quad
v_t = \beta_2 v_{t-1} + (1 - \beta_2) (Q_L^T g_t Q_R)^2 \\
p_t = p_{t-1} - \text{lr} \cdot \left(Q_L
    \frac{Q_L^T m_t Q_R / (1 - \beta_1^{t-1})}{\sqrt{v_t / (1 - \beta_2^{t-1})} + \text{eps}} Q_R^T
    + \text{weight\_decay} \cdot p_{t-1}\right) \\
L_t = \beta_2 L_{t-1} + (1 - \beta_2) g_t g_t^T, \quad
R_t = \beta_2 R_{t-1} + (1 - \beta_2) g_t^T g_t \\
Q_L = \operatorname{qr}(L_t Q_L), \quad Q_R = \operatorname{qr}(R_t Q_R)
    \quad \text{every precondition\_frequency steps}
""",
)  # fmt: skip

RULES = (SOAP,)
