"""Optimizers for PyTorch with clipping, schedules and non-finite skipping built into the step.

from optimizers import AdamW, create, names, get_rule, schedules, param_groups

opt = AdamW(model.parameters(), lr=1e-3, clip_norm=1.0,
            schedule=schedules.warmup_cosine(warmup=0.05), total_steps=10_000)
opt = create("lion", model, lr=1e-4, weight_decay=0.1)    # biases and norms do not decay
opt = SAM(model.parameters(), base="sgd", lr=0.1, rho=0.05)  # step(closure)
"""

from optimizers import classes, schedules
from optimizers.classes import *  # noqa: F403  every rule's class; the registry decides
from optimizers.clipping import clip_grad_norm_
from optimizers.core import Hyper, Option, Rule
from optimizers.factory import create
from optimizers.groups import param_groups
from optimizers.mistakes import OptimizerWarning
from optimizers.monitor import Monitor
from optimizers.optimizer import Optimizer
from optimizers.rules import get_rule, names
from optimizers.wrappers import ASAM, SAM, Lookahead, frozen_statistics

__all__ = [
    "ASAM",
    "SAM",
    "Hyper",
    "Lookahead",
    "Monitor",
    "Optimizer",
    "OptimizerWarning",
    "Option",
    "Rule",
    "clip_grad_norm_",
    "create",
    "frozen_statistics",
    "get_rule",
    "names",
    "param_groups",
    "schedules",
]
__all__ += classes.__all__
