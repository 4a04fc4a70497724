"""`create`: an optimizer by name, for a model or for parameters."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn

from optimizers.classes import CLASSES
from optimizers.groups import param_groups
from optimizers.optimizer import Optimizer
from optimizers.rules import get_rule


def create(name: str, model_or_params: nn.Module | Iterable[Any], **arguments: Any) -> Optimizer:
    """An optimizer by name; packed arguments may also come one by one (``beta1=0.95``).

    A model is split by `param_groups`, so biases and normalisation layers do not decay;
    ``decay_embeddings`` and ``layer_decay`` are passed on to it. Raises ValueError for an unknown
    name or a value out of bounds, TypeError for an unknown argument.
    """
    rule = get_rule(name)
    arguments = rule.pack(arguments)
    params: Any = model_or_params
    if isinstance(model_or_params, nn.Module):
        grouping = {
            key: arguments.pop(key)
            for key in ("decay_embeddings", "layer_decay")
            if key in arguments
        }
        effective = {**rule.arguments, **arguments}
        params = param_groups(
            model_or_params, effective["weight_decay"], lr=effective["lr"], **grouping
        )
    return CLASSES[name](params, **arguments)
