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

from functools import partial

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
from optimizers.parts import Room, Slices, front
from optimizers.rules import bases
from optimizers.rules.bases import dims_of, other, rotate
from optimizers.rules.ranges import BETAS, beta, epsilon, learning_rate, weight_decay


def decay_of(hyper: Values) -> Scalar:
    """The decay of the Gram matrices."""
    decay: Scalar = where(hyper.shampoo_beta < 0, hyper.beta2, hyper.shampoo_beta)
    return decay


def along(state: State) -> int | None:
    """The first dimension without a basis, whose entries see each other through the bases alone."""
    based = [*bases.dims_of(state)]
    return next((dim for dim in range(state["exp_avg"].dim()) if dim not in based), None)


def begin(state: State, hyper: Values, t: Scalar, room: Room | None) -> State:
    """Gram matrices forget; where there is one slice, while its gradient is added."""
    decay, old = decay_of(hyper), {f"gram_{dim}": state[f"gram_{dim}"] for dim in dims_of(state)}
    if room is None:
        return {name: gram * decay for name, gram in old.items()}
    return {} if along(state) is None else {name: gram.mul_(decay) for name, gram in old.items()}


def each(
    grad: Tensor, scale: float, state: State, hyper: Values, t: Scalar, room: Room | None
) -> tuple[Tensor, State]:
    """A step in the present bases; the gradient enters them only afterwards."""
    decay = decay_of(hyper)
    added: State = {}
    if room is None:
        added = bases.grams(grad, state, 1 - decay)
    else:
        keep = decay if along(state) is None else 1.0
        bases.add_grams_(grad, state, (1 - decay) * scale**2, room, keep)
    step = choose(
        t == 1,
        lambda: no_step(grad, scale, state, room),
        lambda: adam_step(grad, scale, state, hyper, t - 1, room),
    )
    return step.pop("direction"), {**added, **step}


def no_step(grad: Tensor, scale: float, state: State, room: Room | None) -> State:
    """What becomes of the first gradient, which only starts the bases: `bases.first` finds it
    where the mean will be.
    """
    if room is None:
        return {**moments_of(state), "exp_avg": grad, "direction": torch.zeros_like(grad)}
    torch.mul(grad, scale, out=state["exp_avg"])
    return {**moments_of(state), "direction": front(room.first, grad.shape).zero_()}


def adam_step(
    grad: Tensor, scale: float, state: State, hyper: Values, t: Scalar, room: Room | None
) -> State:
    """Adam in the bases; ``t`` counts the steps that moved something."""
    rotated, moments = rotate(grad, state, scale, room=room), moments_of(state)
    if room is not None and all(map(Tensor.is_contiguous, (rotated, *moments.values()))):
        scaled = adam_(rotated, moments, hyper, float(t), room)
    else:
        moments = {
            "exp_avg": ema(moments["exp_avg"], rotated, hyper.beta1),
            "exp_avg_sq": ema_square(moments["exp_avg_sq"], rotated, hyper.beta2),
        }
        t = where(t < 1, 1.0, t)
        correction = bias_correction(hyper.beta2, t) ** 0.5 / bias_correction(hyper.beta1, t)
        scaled = moments["exp_avg"] / (moments["exp_avg_sq"].sqrt() + hyper.eps) * correction
    turned = rotate(scaled, state, back=True, room=room, target=room and room.target)
    return {"direction": turned, **moments}


def adam_(grad: Tensor, moments: State, hyper: Values, t: float, room: Room) -> Tensor:
    """What follows in `adam_step`, over the moments and in one pass: a step of torch's fused Adam,
    from zero and of size 1. There eps is added to the corrected root of the squares' mean.
    """
    direction = front(other(room, grad), grad.shape).zero_()
    count = torch.full((), t, dtype=torch.float32, device=grad.device)
    eps = float(hyper.eps / bias_correction(hyper.beta2, t) ** 0.5)
    torch._fused_adam_(
        [direction], [grad], [moments["exp_avg"]], [moments["exp_avg_sq"]], [], [count],
        lr=-1.0, beta1=float(hyper.beta1), beta2=float(hyper.beta2), weight_decay=0.0, eps=eps,
        amsgrad=False, maximize=False,
    )  # fmt: skip
    return direction


def moments_of(state: State) -> State:
    """Adam's moments, which are kept in the bases."""
    return {key: state[key] for key in ("exp_avg", "exp_avg_sq")}


def end(state: State, hyper: Values, t: Scalar, room: Room | None) -> State:
    """New bases in the first step, and whenever they are due."""
    start, due = t == 1, (t - 1) % hyper.precondition_frequency == 0
    if room is None:
        kept = {key: value for key, value in state.items() if not key.startswith("gram")}
        refreshed = partial(choose, due, lambda: kept | bases.refreshed(state), lambda: kept)
        later = refreshed if bases.sizes_of(state) else lambda: kept
        return choose(start, lambda: kept | bases.first(state), later)
    if start:
        bases.first_(state, room)
    elif due:
        bases.refresh_(state, along(state), room)
    return {}


SLICES = Slices(begin=begin, each=each, end=end, along=along, bases=bases.sizes_of)


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
    update=SLICES.update,
    slices=SLICES,
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
