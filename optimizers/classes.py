"""One optimizer class per rule of the registry; editors read the generated ``classes.pyi``."""

from __future__ import annotations

from optimizers.optimizer import Optimizer, make_class
from optimizers.rules import RULES

CLASSES: dict[str, type[Optimizer]] = {
    name: make_class(rule, __name__) for name, rule in RULES.items()
}
globals().update({kind.__name__: kind for kind in CLASSES.values()})

__all__ = [kind.__name__ for kind in CLASSES.values()]
