"""What touches parameters or state without a step: evaluation points and extra gradients."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from torch import Tensor

from optimizers.core import Points, Rule, State, Values
from optimizers.engines import as_real, compute_dtype, store

TRAIN_POINT = "train_point"


def move(
    points: Points,
    hyper: Values,
    params: Iterable[Tensor],
    states: Mapping[Tensor, State],
    *,
    to_eval: bool,
) -> None:
    """Move parameters to where the rule evaluates, or back to exactly where it trained.

    The training point waits in the state meanwhile, because the way back by arithmetic would not
    be exact: an evaluation must not change the training. Parameters without state stay.
    """
    for param in params:
        state = states.get(param)
        if not state:
            continue
        view = as_real(param)
        if not to_eval:
            view.copy_(as_real(state.pop(TRAIN_POINT)))
            continue
        state[TRAIN_POINT] = param.detach().clone()
        reals = {key: as_real(value) for key, value in state.items()}
        view.copy_(points.to_eval(view.to(compute_dtype(view.dtype)), reals, hyper))


def observe(
    rule: Rule, hyper: Values, params: Iterable[Tensor], states: Mapping[Tensor, State]
) -> None:
    """Fold the gradients of parameters that have state into the state, by ``rule.observe``."""
    if rule.observe is None:
        return
    for param in params:
        if param.grad is None:
            continue
        view, grad = as_real(param), as_real(param.grad)
        dtype = compute_dtype(view.dtype)
        state = {key: as_real(value) for key, value in states[param].items() if key != "step"}
        t = float(states[param]["step"])
        store(state, rule.observe(grad.to(dtype), view.to(dtype), state, hyper, t))
