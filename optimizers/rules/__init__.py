"""The registry: one line here per family, one module per line."""

from __future__ import annotations

from importlib import import_module

from optimizers.core import Rule

FAMILIES = (
    "sgd",
    "adagrad",
    "rmsprop",
    "adam",
    "nadam",
    "amsgrad",
    "adabelief",
    "radam",
    "adan",
    "adopt",
    "ademamix",
    "lion",
    "lamb",
    "lars",
    "adafactor",
    "sophia",
    "schedulefree",
    "prodigy",
    "muon",
    "soap",
)

RULES: dict[str, Rule] = {
    rule.name: rule
    for family in FAMILIES
    for rule in import_module(f"optimizers.rules.{family}").RULES
}


def names() -> list[str]:
    """Names of all rules, in registry order."""
    return list(RULES)


def get_rule(name: str) -> Rule:
    """The row of a rule; raises ValueError naming the rules there are."""
    try:
        return RULES[name]
    except KeyError:
        raise ValueError(f"optimizer {name!r} is not known; allowed: {', '.join(RULES)}") from None
