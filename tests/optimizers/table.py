"""The one table of the optimizer tests: a row per rule, with the numbers it is tried with.

A new rule needs one row here; every test over rules picks it up, and a test fails while it is
missing.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from optimizers import schedules
from tests.reference import Formula
from tests.references import adam, lion, sgd, sophia

SHAPES = ((), (7,), (5, 3), (4, 3, 2, 2))
STEPS = 50


@dataclass(frozen=True)
class Row:
    """``settings`` are flat hyperparameters; ``torch_class`` is torch's optimizer for the rule.

    ``torch_fixed`` are arguments only torch has; ``reference_error`` and ``torch_error`` are the
    largest relative errors allowed, wider than the standard ones only with a reason next to the
    row.
    """

    rule: str
    reference: Formula
    settings: tuple[Mapping[str, Any], ...]
    torch_class: Callable[..., torch.optim.Optimizer] | None = None
    torch_fixed: Mapping[str, Any] = field(default_factory=dict)
    shapes: tuple[tuple[int, ...], ...] = SHAPES
    reference_error: float = 1e-10
    torch_error: float = 1e-12


ADAM_SETTINGS = (
    {"lr": 1e-3},
    {"lr": 0.1, "weight_decay": 0.1},
    {"lr": 0.02, "beta1": 0.5, "beta2": 0.9, "eps": 1e-3, "weight_decay": 0.3},
    {"lr": 0.02, "beta1": 0.0},
)

ROWS = (
    Row(
        "sgd",
        sgd.sgd,
        (
            {"lr": 0.1},
            {"lr": 0.1, "weight_decay": 0.1},
            {"lr": 0.05, "momentum": 0.9, "weight_decay": 0.01},
            {"lr": 0.05, "momentum": 0.7, "dampening": 0.3},
            {"lr": 0.05, "momentum": 0.9, "nesterov": True, "weight_decay": 0.1},
        ),
        torch.optim.SGD,
    ),
    Row("adam", adam.adam, ADAM_SETTINGS, torch.optim.Adam),
    Row("adamw", adam.adamw, ADAM_SETTINGS, torch.optim.AdamW),
    Row(
        "lion",
        lion.lion,
        (
            {"lr": 1e-3},
            {"lr": 0.02, "beta1": 0.95, "beta2": 0.98, "weight_decay": 0.3},
            {"lr": 0.02, "beta1": 0.5, "weight_decay": 1.0},
        ),
    ),
    Row(
        "sophia",  # without a Hessian here; with one in test_sophia.py
        sophia.sophia,
        (
            {"lr": 1e-3},
            {"lr": 0.02, "beta1": 0.9, "beta2": 0.95, "rho": 0.1, "weight_decay": 0.3},
        ),
    ),
)

SCHEDULES = tuple(kind() for kind in schedules.SCHEDULES.values())
