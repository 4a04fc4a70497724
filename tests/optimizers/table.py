"""The one table of the optimizer tests: a row per rule, with the numbers it is tried with.

A new rule needs one row here; every test over rules picks it up, and a test fails while it is
missing.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from optimizers import schedules
from tests.optimizers.peers import ExactMuon
from tests.reference import Formula
from tests.references import (
    adabelief,
    adafactor,
    adagrad,
    adam,
    adan,
    ademamix,
    adopt,
    amsgrad,
    lamb,
    lars,
    lion,
    muon,
    nadam,
    prodigy,
    radam,
    rmsprop,
    schedulefree,
    sgd,
    soap,
    sophia,
)

SHAPES = ((), (7,), (5, 3), (4, 3, 2, 2))
STEPS = 50


@dataclass(frozen=True)
class Row:
    """``settings`` are flat hyperparameters; ``torch_class`` is torch's optimizer for the rule.

    ``torch_fixed`` are arguments that make torch's the same rule; settings that name one of
    ``only_ours`` have no peer there, nor have shapes outside ``torch_shapes``, if it is given.
    ``reference_error`` and ``torch_error`` are the largest relative errors allowed, wider than the
    standard ones only with a reason next to the row.
    """

    rule: str
    reference: Formula
    settings: tuple[Mapping[str, Any], ...]
    torch_class: Callable[..., torch.optim.Optimizer] | None = None
    torch_fixed: Mapping[str, Any] = field(default_factory=dict)
    only_ours: tuple[str, ...] = ()
    shapes: tuple[tuple[int, ...], ...] = SHAPES
    torch_shapes: tuple[tuple[int, ...], ...] | None = None
    reference_error: float = 1e-10
    torch_error: float = 1e-12


ADAM_SETTINGS = (
    {"lr": 1e-3},
    {"lr": 0.1, "weight_decay": 0.1},
    {"lr": 0.02, "beta1": 0.5, "beta2": 0.9, "eps": 1e-3, "weight_decay": 0.3},
    {"lr": 0.02, "beta1": 0.0},
)
NADAM_SETTINGS = (
    *ADAM_SETTINGS,
    {"lr": 0.1, "weight_decay": 0.1, "momentum_decay": 0.1},
    {"lr": 0.1, "beta1": 0.99, "momentum_decay": 0.0},
)
AMSGRAD_RULES = ("torch", "paper", "optax")

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
    Row(
        "adagrad",
        adagrad.adagrad,
        (
            {"lr": 0.1},
            {"lr": 0.5, "lr_decay": 0.05, "weight_decay": 0.1},
            {"lr": 0.1, "initial_accumulator_value": 0.3, "eps": 1e-2, "weight_decay": 0.3},
        ),
        torch.optim.Adagrad,
    ),
    Row(
        "rmsprop",
        rmsprop.rmsprop,
        (
            {"lr": 0.01},
            {"lr": 0.05, "alpha": 0.9, "eps": 1e-3, "weight_decay": 0.1},
            {"lr": 0.01, "alpha": 0.9, "momentum": 0.9, "weight_decay": 0.3},
            {"lr": 0.01, "alpha": 0.95, "centered": True},
            {"lr": 0.01, "alpha": 0.9, "momentum": 0.7, "centered": True, "weight_decay": 0.1},
        ),
        torch.optim.RMSprop,
    ),
    Row("adam", adam.adam, ADAM_SETTINGS, torch.optim.Adam),
    Row("adamw", adam.adamw, ADAM_SETTINGS, torch.optim.AdamW),
    Row(
        "nadam",
        nadam.nadam,
        NADAM_SETTINGS,
        torch.optim.NAdam,
        torch_error=1e-7,  # torch keeps the product of its momenta in float32
    ),
    Row(
        "nadamw",
        nadam.nadamw,
        NADAM_SETTINGS,
        torch.optim.NAdam,
        {"decoupled_weight_decay": True, "weight_decay": 1e-2},
        torch_error=1e-7,  # as nadam
    ),
    Row(
        "amsgrad",
        amsgrad.amsgrad,
        (
            *ADAM_SETTINGS,
            *({"lr": 0.1, "beta2": 0.9, "weight_decay": 0.1, "variant": v} for v in AMSGRAD_RULES),
        ),
        torch.optim.Adam,
        {"amsgrad": True},
        only_ours=("variant",),
    ),
    Row(
        "adabelief",
        adabelief.adabelief,
        (
            {"lr": 1e-3},
            {"lr": 0.05, "eps": 1e-8, "weight_decay": 0.1},
            {"lr": 0.02, "beta1": 0.5, "beta2": 0.9, "eps": 1e-3, "weight_decay": 0.3},
        ),
    ),
    Row(
        "radam",
        radam.radam,
        (*ADAM_SETTINGS, {"lr": 0.02, "beta2": 0.6}, {"lr": 0.02, "beta2": 0.0}),
        torch.optim.RAdam,
        {"decoupled_weight_decay": True},
    ),
    Row(
        "adan",
        adan.adan,
        (
            {"lr": 1e-3},
            {"lr": 0.05, "weight_decay": 0.1},
            {
                "lr": 0.02,
                "beta1": 0.9,
                "beta2": 0.5,
                "beta3": 0.9,
                "eps": 1e-3,
                "weight_decay": 0.3,
            },
        ),
    ),
    Row(
        "adopt",
        adopt.adopt,
        (
            {"lr": 1e-2},
            {"lr": 0.05, "beta2": 0.99, "weight_decay": 0.1},
            {"lr": 0.02, "beta1": 0.5, "beta2": 0.9, "eps": 0.5, "weight_decay": 0.3},
        ),
    ),
    Row(
        "ademamix",
        ademamix.ademamix,
        (
            {"lr": 1e-3},
            {"lr": 0.05, "beta3": 0.99, "alpha": 8.0, "weight_decay": 0.1},
            {"lr": 0.02, "beta3_warmup": 30.0, "alpha_warmup": 20.0, "weight_decay": 0.3},
            {"lr": 0.02, "beta1": 0.0, "beta2": 0.9, "beta3_warmup": 70.0, "eps": 1e-3},
        ),
    ),
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
        "lamb",
        lamb.lamb,
        (
            {"lr": 1e-3},
            {"lr": 0.05, "weight_decay": 0.0},
            {"lr": 0.02, "beta1": 0.5, "beta2": 0.9, "eps": 1e-3, "weight_decay": 0.3},
        ),
    ),
    Row(
        "lars",
        lars.lars,
        (
            {"lr": 1.0},
            {"lr": 5.0, "weight_decay": 0.1},
            {"lr": 0.5, "momentum": 0.0, "trust_coefficient": 0.02, "weight_decay": 0.3},
        ),
    ),
    Row(
        "adafactor",
        adafactor.adafactor,
        (
            {"lr": 1e-2},
            {"lr": 0.5, "weight_decay": 0.1},
            {"lr": 0.05, "beta2_decay": -0.5, "d": 3.0, "weight_decay": 0.3},
            {"lr": 0.05, "eps1": 0.7, "eps2": 2.0},
        ),
        torch.optim.Adafactor,
    ),
    Row(
        "sophia",  # without a Hessian here; with one in test_sophia.py
        sophia.sophia,
        (
            {"lr": 1e-3},
            {"lr": 0.02, "beta1": 0.9, "beta2": 0.95, "rho": 0.1, "weight_decay": 0.3},
        ),
    ),
    Row(
        "schedulefree_sgd",
        schedulefree.sgd,
        (
            {"lr": 0.5},
            {"lr": 0.1, "momentum": 0.7, "weight_decay": 0.1, "warmup_steps": 20},
            {"lr": 0.1, "momentum": 0.95, "weight_decay": 0.1, "r": 1.5, "weight_lr_power": 0.0},
        ),
    ),
    Row(
        "schedulefree_adamw",
        schedulefree.adamw,
        (
            {"lr": 2.5e-3},
            {"lr": 0.1, "beta1": 0.7, "beta2": 0.9, "weight_decay": 0.1, "warmup_steps": 20},
            {"lr": 0.1, "beta1": 0.95, "eps": 1e-3, "r": 1.5, "weight_lr_power": 1.0},
        ),
    ),
    Row(
        "prodigy",
        prodigy.prodigy,
        (
            {"lr": 1.0},
            {"lr": 0.5, "beta1": 0.8, "beta2": 0.9, "weight_decay": 0.1, "d0": 1e-3},
            {"lr": 1.0, "d0": 1e-3, "d_coef": 2.0, "growth_rate": 1.1, "eps": 1e-3},
            {"lr": 1.0, "use_bias_correction": True, "safeguard_warmup": True, "d0": 1e-4},
        ),
    ),
    Row(
        "muon",
        muon.muon,
        (
            {},
            {"lr": 0.02, "momentum": 0.5, "weight_decay": 0.3, "nesterov": False},
            {"lr": 0.02, "adjust_lr_fn": "match_rms_adamw", "ns_steps": 3},
            {"lr": 0.02, "ns_a": 2.0, "ns_b": -1.5, "ns_c": 0.5, "weight_decay": 0.0},
            {"adamw_lr": 0.02, "adamw_beta1": 0.5, "adamw_beta2": 0.9, "adamw_eps": 1e-3},
            # torch has it from 2.14 on
            {"lr": 0.02, "adjust_lr_fn": "spectral_unclamped", "adamw_lr": 0.02},
        ),
        ExactMuon,
        only_ours=("adamw_lr",),
        torch_shapes=((5, 3), (3, 5), (4, 4)),  # torch refuses all but matrices
        shapes=(*SHAPES, (3, 5)),
    ),
    Row(
        "soap",
        soap.soap,
        (
            {"lr": 3e-3},
            {"lr": 0.02, "beta1": 0.8, "beta2": 0.9, "weight_decay": 0.3, "shampoo_beta": 0.7},
            {"lr": 0.02, "precondition_frequency": 1, "eps": 1e-3, "weight_decay": 0.0},
            {"lr": 0.02, "precondition_frequency": 3, "max_precond_dim": 4},
        ),
        # the bases of a Gram matrix that is not of full rank are not unique: no tall matrices
        shapes=((), (7,), (5, 5), (4, 3, 2, 2)),
    ),
)

SCHEDULES = tuple(kind() for kind in schedules.SCHEDULES.values())
