"""Our optimizer for a benchmark: the settings each rule is measured with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import optimizers
from benchmarks.models import Named
from benchmarks.peers import split

STEPS = 100_000  # a run long enough for engine="auto" to compile what is not in the cache

# What is not the default: a rule that does less than its peers by default is given as much to do.
SETTINGS: Mapping[str, Mapping[str, Any]] = {
    "sgd": {"momentum": 0.9},
    "lars": {"weight_decay": 1e-4},
    "muon": {"weight_decay": 0.0},
}


def ours(rule: str, named: Named, engine: str, **arguments: Any) -> optimizers.Optimizer:
    """The optimizer over these parameters, clipping to a global norm of 1."""
    params: list[Any] = [param for _, param in named]
    if rule == "muon":
        hidden, others = split(named)
        groups = ({"params": hidden}, {"params": others, "rule": "adamw"})
        params = [group for group in groups if group["params"]]
    settings = {"clip_norm": 1.0, "total_steps": STEPS, **SETTINGS.get(rule, {}), **arguments}
    return optimizers.create(rule, params, engine=engine, **settings)


def arrays(rule: str, named: Named, optimizer: optimizers.Optimizer) -> int:
    """How many arrays of a parameter's size the rule rewrites: the parameter, and its state."""
    sizes = [
        sum(value.numel() for value in optimizer.state[param].values() if value.dim())
        / param.numel()
        for _, param in named
    ]
    weights = [param.numel() for _, param in named]
    mean = sum(s * w for s, w in zip(sizes, weights, strict=True)) / sum(weights)
    return 1 + int(mean)
