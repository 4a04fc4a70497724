"""What `find_lr` is given, checked before anything is trained: each mistake is one line."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from tuner.errors import UsageError
from tuner.task import one_number

Loss = Callable[[nn.Module, Any], Tensor]


def check(
    model: object,
    optimizer: object,
    loaders: Mapping[str, object],
    counts: Mapping[str, int | None],
) -> None:
    """Raises UsageError for what cannot be tried; `counts` are numbers of at least 1."""
    if not isinstance(model, nn.Module):
        raise UsageError(f"model must be an nn.Module, not {type(model).__name__}")
    if not isinstance(optimizer, torch.optim.Optimizer):
        found = type(optimizer).__name__
        raise UsageError(f"optimizer must be a torch.optim.Optimizer, not {found}")
    if isinstance(optimizer, torch.optim.LBFGS):
        raise UsageError("LBFGS steps along a line through one batch: no learning rate to find")
    if any(is_lazy(p) for p in model.parameters()):
        raise UsageError("model has lazy layers without a shape: run one batch through it first")
    for name, loader in loaders.items():
        if isinstance(loader, Iterator):
            raise UsageError(f"{name} can be read only once: pass a DataLoader or a list")
        if not isinstance(loader, Iterable):
            raise UsageError(f"{name} must be a DataLoader or a list, not {type(loader).__name__}")
    for name, count in counts.items():
        if count is not None and count < 1:
            raise UsageError(f"{name} = {count}: expected at least 1")


def loss_of(loss: Callable[..., Tensor]) -> Loss:
    """`loss(model, batch)`, also of a criterion for pairs of inputs and targets.

    Raises UsageError, when called, for a batch that is no pair and a loss that cannot be trained.
    """
    of_torch = getattr(loss, "__module__", "").startswith("torch.nn")
    criterion = isinstance(loss, nn.Module) or of_torch

    def of_batch(model: nn.Module, batch: Any) -> Tensor:
        given = _criterion(loss, model, batch) if criterion else loss(model, batch)
        value = one_number(given, UsageError)
        if torch.is_grad_enabled() and not value.requires_grad:
            raise UsageError("loss does not depend on any parameter that can be trained")
        return value

    return of_batch


def _criterion(criterion: Callable[..., Tensor], model: nn.Module, batch: Any) -> Tensor:
    if isinstance(batch, Mapping) or not isinstance(batch, Iterable) or len(list(batch)) != 2:
        message = "a criterion as loss needs batches of (inputs, targets): pass loss(model, batch)"
        raise UsageError(message)
    inputs, targets = batch
    return criterion(model(inputs), targets)
