"""The known mistakes: one table of codes, and which of them a model and its optimizer show.

A warning begins with its code, and is silenced by it:

    warnings.filterwarnings("ignore", message="OPT002")      # as any Python warning
    create("adamw", model, silence=("OPT002",))              # for one optimizer
"""

from __future__ import annotations

import re
import sys
import warnings
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeAlias

import torch
from torch import nn

from optimizers.clipping import SCALINGS
from optimizers.core import Rule

PACKAGE = str(Path(__file__).parent)
ATTENTION_NAME = re.compile(r"(?<!Channel)(?<!Spatial)Attention")
RECURRENT_NAME = re.compile(r"(RNN|LSTM|GRU)(Cell)?$")
RECURRENT = (nn.RNNBase, nn.RNNCellBase)
HALF = (torch.float16, torch.bfloat16)
# Rules whose first steps are small by themselves, and rules whose step size does not depend on
# the size of the gradient.
WARMS_UP = frozenset({"radam", "prodigy"})
BOUNDED = frozenset({"lion", "adafactor", "lars", "lamb", "muon", "sophia"})

Traits: TypeAlias = frozenset[str]  # of "attention", "recurrent", "half precision"


class OptimizerWarning(UserWarning):
    """A setting that is known to fail; its text begins with a code of `MISTAKES`."""


@dataclass(frozen=True)
class Mistake:
    """A known mistake: what it is, why it hurts and what to do instead."""

    what: str
    why: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.what}: {self.why}; {self.remedy}"


MISTAKES: Mapping[str, Mistake] = MappingProxyType(
    {
        "OPT001": Mistake(
            "L2 weight decay in an adaptive rule, for a model with attention",
            "the decay is divided by the gradient's size, so weights with large gradients hardly "
            "decay (Loshchilov and Hutter, ICLR 2019)",
            'use adamw, or weight_decay_mode="decoupled"',
        ),
        "OPT002": Mistake(
            "no warm-up, for a model with attention",
            "the first updates rest on few gradients and can put attention into a state that it "
            "does not leave (Xiong et al., ICML 2020; Liu et al., ICLR 2020)",
            "use schedules.warmup_cosine(warmup=0.05), or silence this if your loop warms up",
        ),
        "OPT003": Mistake(
            "no clipping, for a recurrent model, attention or half precision",
            "one batch with a huge gradient undoes many steps (Pascanu et al., ICML 2013)",
            "use clip_norm=1.0, or silence this if your loop clips",
        ),
        "OPT004": Mistake(
            "ImageNet's learning rate 0.1 and weight decay 1e-4, on a small data set",
            "they were found for 1.28 million images at batch 256",
            "search both, with the learning rate from a range test",
        ),
        "OPT005": Mistake(
            "one seed decides",
            "the spread between seeds is often larger than the difference between optimizers",
            "use 10 seeds or more to decide",
        ),
        "OPT006": Mistake(
            "the training loss judges",
            "it prefers whatever overfits most",
            "use a validation metric on examples that are not trained on",
        ),
        "OPT007": Mistake(
            "one learning rate for several batch sizes",
            "the best one grows with the batch size, for SGD roughly in proportion and for Adam "
            "with the root",
            "search the learning rate, or change it with the batch size",
        ),
        "OPT008": Mistake(
            "the model sets the seed itself",
            "every seed begins with the same weights, so seeds differ less than real runs do and "
            "the intervals are too narrow",
            "take torch.manual_seed out of the task: the tuner seeds before every call",
        ),
    }
)


def traits(model: nn.Module) -> Traits:
    """What a model shows of itself: attention, recurrence, half precision parameters."""
    found = set()
    for module in model.modules():
        name = type(module).__name__
        if isinstance(module, nn.MultiheadAttention) or ATTENTION_NAME.search(name):
            found.add("attention")
        if isinstance(module, RECURRENT) or RECURRENT_NAME.search(name):
            found.add("recurrent")
    if any(param.dtype in HALF for param in model.parameters()):
        found.add("half precision")
    return frozenset(found)


def divides_l2(rule: Rule, arguments: Mapping[str, Any], model: Traits) -> bool:
    """OPT001: an adaptive rule whose weight decay goes through its denominator."""
    mode = arguments.get("weight_decay_mode") or rule.weight_decay_mode
    adaptive = rule.batch_scaling != "linear"
    return "attention" in model and adaptive and mode == "l2" and arguments["weight_decay"] != 0


def starts_cold(rule: Rule, arguments: Mapping[str, Any], model: Traits) -> bool:
    """OPT002: attention without a warm-up of the schedule or of the rule itself."""
    schedule = arguments.get("schedule")
    warm = schedule is not None and schedule.warmup > 0
    own = rule.name in WARMS_UP or arguments.get("warmup_steps", 0) > 0
    return "attention" in model and not (warm or own)


def takes_any_gradient(rule: Rule, arguments: Mapping[str, Any], model: Traits) -> bool:
    """OPT003: a model with occasional huge gradients, and nothing that bounds their effect."""
    clipped = any(arguments.get(name) is not None for name in ("clip_value", *SCALINGS))
    return bool(model) and not (clipped or rule.name in BOUNDED)


# What can be seen when an optimizer is created; a study sees the others, too.
DETECTORS: Mapping[str, Callable[[Rule, Mapping[str, Any], Traits], bool]] = MappingProxyType(
    {"OPT001": divides_l2, "OPT002": starts_cold, "OPT003": takes_any_gradient}
)


def find(rule: Rule, arguments: Mapping[str, Any], model: Traits) -> list[str]:
    """Codes of the mistakes in constructor arguments (defaults filled in), for such a model."""
    return [code for code, shows in DETECTORS.items() if shows(rule, arguments, model)]


def check_codes(owner: str, codes: Collection[str]) -> None:
    """Raise ValueError, in one line, for a code that no warning has."""
    unknown = set(codes) - MISTAKES.keys()
    if isinstance(codes, str) or unknown:
        allowed = ", ".join(MISTAKES)
        raise ValueError(f"{owner}: silence={codes!r} is not valid; allowed: some of {allowed}")


def levels_up() -> int:
    """The ``stacklevel`` of the user's line: how many callers are in this package, and one."""
    level, frame = 1, sys._getframe(1)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(PACKAGE):
        level, frame = level + 1, frame.f_back
    return level


def warn(
    rule: Rule, arguments: Mapping[str, Any], model: nn.Module, silence: Collection[str] = ()
) -> None:
    """Warn of each mistake that is not silenced, at the user's line.

    Raises ValueError for a code that no warning has.
    """
    check_codes("create", silence)
    for code in find(rule, {**rule.arguments, **arguments}, traits(model)):
        if code not in silence:
            text = f"{code}: {MISTAKES[code]} (rule {rule.name})"
            warnings.warn(text, OptimizerWarning, stacklevel=levels_up())
