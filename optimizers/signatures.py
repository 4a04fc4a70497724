"""Constructor signatures of the optimizer classes, derived from the rules' rows."""

from __future__ import annotations

import inspect
from inspect import Parameter
from typing import Any

from optimizers.core import Rule

# What every optimizer takes after its own hyperparameters: name -> (annotation, default).
SHELL: dict[str, tuple[str, Any]] = {
    "maximize": ("bool", False),
    "weight_decay_mode": ("str | None", None),
    "clip_norm": ("float | None", None),
    "clip_value": ("float | None", None),
    "clip_per_layer": ("float | None", None),
    "clip_agc": ("float | None", None),
    "schedule": ("Schedule | None", None),
    "total_steps": ("int | None", None),
    "skip_nonfinite": ("bool", True),
    "low_precision": ("str", "kahan"),
    "engine": ("str", "auto"),
}

# Arguments of torch's optimizers that are not ours, and what does the same here.
TORCH_ONLY = {
    "amsgrad": "the class AMSGrad",
    "decoupled_weight_decay": 'weight_decay_mode="decoupled"',
    "foreach": "engine=...",
    "fused": "engine=...",
    "capturable": "engine=...",
    "differentiable": "the pure Rule.update",
}


def annotation(value: Any) -> str:
    """The type of an argument, from its default."""
    if isinstance(value, tuple):
        kinds = ("float | None" if number is None else "float" for number in value)
        return f"tuple[{', '.join(kinds)}]"
    return "str | None" if value is None else type(value).__name__


def rule_parameters(rule: Rule) -> dict[str, tuple[str, Any]]:
    """The rule's own constructor arguments: name -> (annotation, default)."""
    return {name: (annotation(default), default) for name, default in rule.arguments.items()}


def signature(rule: Rule) -> inspect.Signature:
    """``(params, lr=..., betas=..., *, maximize=False, clip_norm=None, ...)``."""
    positional = Parameter.POSITIONAL_OR_KEYWORD
    own = [
        Parameter(name, positional, default=default, annotation=kind)
        for name, (kind, default) in rule_parameters(rule).items()
    ]
    shell = [
        Parameter(name, Parameter.KEYWORD_ONLY, default=default, annotation=kind)
        for name, (kind, default) in SHELL.items()
    ]
    return inspect.Signature([Parameter("params", positional, annotation="ParamsT"), *own, *shell])


def bind(rule: Rule, params: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Every constructor argument by name; raises TypeError naming one that there is not."""
    kind = signature(rule)
    unknown = [name for name in kwargs if name not in kind.parameters]
    if unknown:
        allowed = TORCH_ONLY.get(unknown[0]) or ", ".join(list(kind.parameters)[1:])
        raise TypeError(f"{rule.class_name}: no argument {unknown[0]!r}; allowed: {allowed}")
    bound = kind.bind(params, *args, **kwargs)
    bound.apply_defaults()
    return dict(bound.arguments)
