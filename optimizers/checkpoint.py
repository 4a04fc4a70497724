"""The state of one parameter: how it begins, and how it comes back from a checkpoint.

The layout is torch's, ``{"step": 0-D tensor, name: tensor, ...}``, so that checkpoints go both
ways between this library and ``torch.optim`` for the same rule.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from optimizers.core import Rule, State, Values
from optimizers.precision import COMPENSATION_DTYPE, HALF, as_real, compute_dtype
from optimizers.sharding import plain

Group = dict[str, Any]

# What the shell keeps in a parameter's state beside the rule's own tensors.
COMPENSATION = "compensation"  # what a half precision parameter could not hold
TRAIN_POINT = "train_point"  # the parameter while it is at its evaluation point
OWN = ("step", COMPENSATION, TRAIN_POINT)
DECOUPLED = "decoupled_weight_decay"  # how torch's groups say where the weight decay goes


@torch.inference_mode(mode=False)  # what is allocated in inference mode can only be used there
@torch.no_grad()
def allocate(rule: Rule, param: Tensor, state: State, hyper: Values, low_precision: str) -> None:
    """Fill in the state of a parameter, unless it holds already what the rule wants.

    A hyperparameter that leaves zero may ask for more than there was (momentum); the state then
    begins anew.
    """
    real = as_real(param.detach())
    if low_precision != "kahan":
        state.pop(COMPENSATION, None)
    elif real.dtype in HALF and COMPENSATION not in state:
        state[COMPENSATION] = torch.zeros_like(real, dtype=COMPENSATION_DTYPE)
    fresh = rule.state(real.to(compute_dtype(real.dtype)), hyper)
    if "step" in state and fresh.keys() <= state.keys():
        return
    for key in state.keys() - {COMPENSATION}:
        del state[key]
    state["step"] = torch.tensor(0.0, dtype=torch.float32)
    for key, value in fresh.items():
        is_pair = param.is_complex() and value.shape == real.shape
        state[key] = torch.view_as_complex(value) if is_pair else value


def fresh(rule: Rule, param: Tensor, hyper: Values, low_precision: str) -> State:
    """The state of a parameter before its first update."""
    state: State = {}
    allocate(rule, param, state, hyper, low_precision)
    return state


def rule_state(state: State) -> State:
    """The tensors that the rule itself asked for."""
    own = {**state}
    for key in OWN:
        own.pop(key, None)
    return own


def plain_state(state: State) -> State:
    """All of a parameter's state as rules take it."""
    return {key: plain(value) for key, value in state.items()}


def saved_states(
    groups: list[Group], checkpoint: Mapping[str, Any]
) -> Iterator[tuple[Tensor, Any]]:
    """Each parameter that has state in a checkpoint, with that state as it was saved."""
    ids = [i for group in checkpoint["param_groups"] for i in group["params"]]
    params = [param for group in groups for param in group["params"]]
    for number, param in zip(ids, params, strict=True):
        if checkpoint["state"].get(number):
            yield param, checkpoint["state"][number]


def restore(param: Tensor, saved: Mapping[str, Any]) -> State:
    """A parameter's state from a checkpoint, in the precision of the arithmetic; shares nothing.

    A compensation that torch has rounded to the parameter's dtype begins anew.
    """
    state = {
        key: restore_tensor(param, value, exact=key in (COMPENSATION, TRAIN_POINT))
        for key, value in saved.items()
        if isinstance(value, Tensor)
        and key != "step"
        and not (key == COMPENSATION and value.dtype != COMPENSATION_DTYPE)
    }
    # torch's SGD counts no steps; what matters there is that the first one is over
    step = float(saved.get("step", 1.0 if state else 0.0))
    state["step"] = torch.tensor(step, dtype=torch.float32)
    return state


def restore_tensor(param: Tensor, value: Tensor, *, exact: bool) -> Tensor:
    """A copy on the parameter's device, with the parameter's strides if it has its shape.

    Half precision is widened to that of the arithmetic unless ``exact``.
    """
    dtype = value.dtype if exact else compute_dtype(value.dtype)
    if value.shape != param.shape:
        return value.to(param.device, dtype, copy=True)
    return torch.empty_like(param, dtype=dtype, requires_grad=False).copy_(value)


def check_shapes(rule: Rule, param: Tensor, state: State, hyper: Values) -> None:
    """Raise ValueError unless loaded state has the shapes that the rule gives this parameter."""
    shape = (*param.shape, 2) if param.is_complex() else param.shape
    expected = rule.state_layout(shape, param.dtype, hyper)
    for key, value in expected.items():
        actual = as_real(state[key]).shape if key in state else value.shape
        if actual != value.shape:
            raise ValueError(
                f"{rule.class_name}: the checkpoint's {key} has shape {tuple(actual)}; allowed "
                f"for a parameter of shape {tuple(param.shape)}: {tuple(value.shape)}"
            )


def for_torch(group: Group, rule: Rule) -> Group:
    """What torch's optimizer for the same rule looks for in a group, and ours says otherwise."""
    return {**rule.torch_group, DECOUPLED: group["weight_decay_mode"] == "decoupled"}


def complete(group: Group, rule: Rule, defaults: Mapping[str, Any], steps: float) -> None:
    """Give a loaded group what its checkpoint lacks; ``steps`` is how far the run has come.

    Raises ValueError when the checkpoint is one of torch's for another rule.
    """
    for key, value in rule.torch_group.items():
        if group.get(key, value) != value:
            raise ValueError(
                f"{rule.class_name}: the checkpoint has {key}={group[key]!r}; allowed: {value!r}"
            )
    decoupled = group.pop(DECOUPLED, None)
    if decoupled is not None:
        group.setdefault("weight_decay_mode", "decoupled" if decoupled else "l2")
    own = {name: defaults.get(name, value) for name, value in rule.arguments.items()}
    shell = {key: value for key, value in defaults.items() if key not in rule.arguments}
    for key, value in {**shell, **own, "schedule_step": int(steps)}.items():
        group.setdefault(key, value)
