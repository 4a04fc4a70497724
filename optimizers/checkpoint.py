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
from optimizers.engines import as_real, compute_dtype

Group = dict[str, Any]


def allocate(rule: Rule, param: Tensor, state: State, hyper: Values) -> None:
    """Fill in the state of a parameter, unless it holds already what the rule wants.

    A hyperparameter that leaves zero may ask for more than there was (momentum); the state then
    begins anew.
    """
    real = as_real(param.detach())
    fresh = rule.state(real.to(compute_dtype(real.dtype)), hyper)
    if state and fresh.keys() <= state.keys():
        return
    state.clear()
    state["step"] = torch.tensor(0.0, dtype=torch.float32)
    for key, value in fresh.items():
        is_pair = param.is_complex() and value.shape == real.shape
        state[key] = torch.view_as_complex(value) if is_pair else value


def rule_state(state: State) -> State:
    """The tensors that the rule itself asked for, real."""
    return {key: as_real(value) for key, value in state.items() if key != "step"}


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
    """A parameter's state from a checkpoint, in the precision of the arithmetic; shares nothing."""
    state = {
        key: restore_tensor(param, value)
        for key, value in saved.items()
        if isinstance(value, Tensor) and key != "step"
    }
    # torch's SGD counts no steps; what matters there is that the first one is over
    step = float(saved.get("step", 1.0 if state else 0.0))
    state["step"] = torch.tensor(step, dtype=torch.float32)
    return state


def restore_tensor(param: Tensor, value: Tensor) -> Tensor:
    """A copy on the parameter's device, with the parameter's strides if it has its shape."""
    half = param.dtype != compute_dtype(param.dtype)
    dtype = torch.float32 if half and value.is_floating_point() else value.dtype
    if value.shape != param.shape:
        return value.to(param.device, dtype, copy=True)
    return torch.empty_like(param, dtype=dtype, requires_grad=False).copy_(value)


def complete(group: Group, rule: Rule, defaults: Mapping[str, Any], steps: float) -> None:
    """Give a loaded group what its checkpoint lacks; ``steps`` is how far the run has come."""
    own = {name: defaults.get(name, value) for name, value in rule.arguments.items()}
    shell = {key: value for key, value in defaults.items() if key not in rule.arguments}
    for key, value in {**shell, **own, "schedule_step": int(steps)}.items():
        group.setdefault(key, value)
