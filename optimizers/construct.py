"""An optimizer of one rule, for parameters or for a model whose parameters it sorts into groups."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

from torch import nn

from optimizers.classes import CLASSES
from optimizers.groups import hidden_groups, param_groups
from optimizers.mistakes import warn
from optimizers.optimizer import Optimizer
from optimizers.rules import get_rule

GROUPING = ("decay_embeddings", "layer_decay")


def from_rule(
    name: str,
    model_or_params: nn.Module | Iterable[Any],
    *,
    silence: Collection[str] = (),
    **arguments: Any,
) -> Optimizer:
    """The optimizer of a rule by name; see `optimizers.create`."""
    rule = get_rule(name)
    arguments = rule.pack(arguments)
    params: Any = model_or_params
    if isinstance(model_or_params, nn.Module):
        grouping = {key: arguments.pop(key) for key in GROUPING if key in arguments}
        effective = {**rule.arguments, **arguments}
        params = param_groups(model_or_params, effective["weight_decay"], lr=1.0, **grouping)
        rates = ("lr",) if rule.partner is None else ("lr", rule.partner.arguments["lr"])
        for group in params:
            if "lr" in group:  # the layer's share of each learning rate
                group.update({rate: group["lr"] * effective[rate] for rate in rates})
        if rule.partner is not None:
            params = hidden_groups(model_or_params, params, rule.partner.rule)
    optimizer = CLASSES[name](params, **arguments)
    if isinstance(model_or_params, nn.Module):
        warn(rule, arguments, model_or_params, silence)
    return optimizer
