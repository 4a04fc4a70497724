"""Hyperparameters that most rules share; each rule gives default, search range and source."""

from __future__ import annotations

from collections.abc import Mapping

from optimizers.core import Hyper

BETAS: Mapping[str, tuple[str, ...]] = {"betas": ("beta1", "beta2")}


def learning_rate(default: float, low: float, high: float, source: str) -> Hyper:
    """The learning rate, searched on the log scale first of all."""
    return Hyper(
        default, low, high, log=True, priority=1, at_least=0.0, doc="learning rate", source=source
    )


def weight_decay(default: float, low: float, high: float, source: str) -> Hyper:
    """Weight decay, searched on the log scale together with the learning rate."""
    return Hyper(
        default, low, high, log=True, priority=1, at_least=0.0, doc="weight decay", source=source
    )


def beta(
    default: float, low: float, high: float, source: str, doc: str, *, priority: int = 0
) -> Hyper:
    """The decay of an average in [0, 1), searched as ``log(1 - beta)``."""
    return Hyper(
        default, low, high, log=True, complement=True, priority=priority,
        at_least=0.0, below=1.0, doc=doc, source=source,
    )  # fmt: skip


def epsilon(
    default: float, low: float, high: float, source: str, *, doc: str = "added to the denominator"
) -> Hyper:
    """A small positive term, searched on the log scale when the budget is large."""
    return Hyper(default, low, high, log=True, priority=3, at_least=0.0, doc=doc, source=source)
