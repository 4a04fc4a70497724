"""Everything that trying out training changes, kept and put back bit by bit."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from tuner.seeding import preserved_rng


@contextlib.contextmanager
def preserved(model: nn.Module, optimizer: torch.optim.Optimizer, loader: Any) -> Iterator[None]:
    """Model, optimizer and all random generators are afterwards as before, also after exceptions.

    Covers parameters, their gradients, all buffers and train or eval mode; the optimizer's state,
    groups and attributes, and those of optimizers inside it; the generators of Python, NumPy,
    PyTorch and of the loader and its samplers. Parameters keep their identity.
    """
    generators = [(each, each.get_state()) for each in _generators(loader)]
    modes = [(module, module.training) for module in model.modules()]
    tensors = [*model.parameters(), *model.buffers()]
    values = [tensor.detach().clone() for tensor in tensors]
    gradients = [(tensor, tensor.grad, _clone(tensor.grad)) for tensor in tensors]
    optimizers = [(each, _optimizer_state(each)) for each in _nested(optimizer)]
    with preserved_rng():
        try:
            yield
        finally:
            with torch.no_grad():
                for tensor, value in zip(tensors, values, strict=True):
                    tensor.copy_(value)
                for tensor, grad, kept in gradients:
                    tensor.grad = None if grad is None or kept is None else grad.copy_(kept)
            for each, state in optimizers:
                _restore_optimizer(each, state)
            for module, training in modes:
                module.training = training
            for generator, seed in generators:
                generator.set_state(seed)


def _clone(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.clone()


def _optimizer_state(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    attributes = {
        name: copy.deepcopy(value) if _is_data(value) else value
        for name, value in vars(optimizer).items()
        if name not in ("state", "param_groups")
    }
    groups = [
        {name: copy.deepcopy(value) for name, value in group.items() if name != "params"}
        for group in optimizer.param_groups
    ]
    state = {param: copy.deepcopy(dict(value)) for param, value in optimizer.state.items()}
    return {"attributes": attributes, "groups": groups, "state": state}


def _restore_optimizer(optimizer: torch.optim.Optimizer, saved: dict[str, Any]) -> None:
    for name in vars(optimizer).keys() - saved["attributes"].keys() - {"state", "param_groups"}:
        delattr(optimizer, name)
    vars(optimizer).update(saved["attributes"])
    for group, values in zip(optimizer.param_groups, saved["groups"], strict=True):
        params = group["params"]
        group.clear()
        group.update({"params": params, **values})
    optimizer.state.clear()
    optimizer.state.update(saved["state"])


def _nested(optimizer: torch.optim.Optimizer) -> list[torch.optim.Optimizer]:
    """The optimizer and those that it wraps."""
    inner = [each for each in vars(optimizer).values() if isinstance(each, torch.optim.Optimizer)]
    return [optimizer, *(found for each in inner for found in _nested(each))]


def _is_data(value: Any) -> bool:
    """Numbers, texts, tensors and containers of them: what a step may change in place."""
    if isinstance(value, dict):
        return all(map(_is_data, value.values()))
    if isinstance(value, (list, tuple)):
        return all(map(_is_data, value))
    return value is None or isinstance(value, (bool, int, float, str, Tensor))


def _generators(loader: Any) -> list[torch.Generator]:
    owners = [loader, getattr(loader, "sampler", None), getattr(loader, "batch_sampler", None)]
    owners.append(getattr(owners[2], "sampler", None))
    found = [getattr(owner, "generator", None) for owner in owners]
    return list({id(each): each for each in found if isinstance(each, torch.Generator)}.values())
