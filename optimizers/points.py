"""What touches parameters or state without a step: evaluation points and extra gradients."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from torch import Tensor

from optimizers.batch import store
from optimizers.checkpoint import COMPENSATION, TRAIN_POINT, plain_state, rule_state
from optimizers.core import Points, Rule, State, Values
from optimizers.precision import widen
from optimizers.sharding import placed_like, plain


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
        view = plain(param)
        if not to_eval:
            view.copy_(plain(state.pop(TRAIN_POINT)))
            continue
        state[TRAIN_POINT] = param.detach().clone()
        own = plain_state(state)
        exact = widen(view, own.get(COMPENSATION))
        view.copy_(points.to_eval(exact, rule_state(own), hyper))


def observe(
    rule: Rule, hyper: Values, params: Iterable[Tensor], states: Mapping[Tensor, State]
) -> None:
    """Fold the gradients of parameters that have state into the state, by ``rule.observe``."""
    if rule.observe is None:
        return
    for param in params:
        if param.grad is None:
            continue
        view, grad = plain(param), plain(placed_like(param.grad, param))
        kept, t = plain_state(states[param]), float(states[param]["step"])
        exact, state = widen(view, kept.get(COMPENSATION)), rule_state(kept)
        store(state, rule.observe(grad.to(exact.dtype), exact, state, hyper, t))
