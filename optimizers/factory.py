"""`create`: an optimizer by name, for a model or for parameters."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, cast

from torch import nn

from optimizers.construct import from_rule
from optimizers.optimizer import Optimizer
from optimizers.wrappers import WRAPPERS


def create(name: str, model_or_params: nn.Module | Iterable[Any], **arguments: Any) -> Optimizer:
    """An optimizer by name; packed arguments may also come one by one (``beta1=0.95``).

    A model is split by `param_groups`, so biases and normalisation layers do not decay;
    ``decay_embeddings`` and ``layer_decay`` are passed on to it. A rule for matrices (muon) gets
    those of the hidden layers. ``"sam"``, ``"asam"`` and ``"lookahead"`` take ``base="adamw"`` and
    that rule's arguments besides their own; the result offers all that its base does.

    Warns (`OptimizerWarning`) of known mistakes that a model shows, unless ``silence`` names their
    codes (`optimizers.mistakes`). Raises ValueError for an unknown name or a value out of bounds,
    TypeError for an unknown argument.
    """
    if name in WRAPPERS:
        return cast(Optimizer, WRAPPERS[name](model_or_params, **arguments))
    return from_rule(name, model_or_params, **arguments)
