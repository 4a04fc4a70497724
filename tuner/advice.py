"""Warnings for the known mistakes in a study, before anything is spent.

Codes, reasons and remedies are those of `optimizers.mistakes`; a study file silences some of them
with `run.silence = ["OPT005"]`. What the study file does not show comes from the check job: what
the model looks like and how many examples there are, whether it validates on training data, and
whether it sets its own seed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import combinations
from types import MappingProxyType
from typing import Any

from optimizers import get_rule, schedules
from optimizers.mistakes import MISTAKES, find
from tuner.space import decay_box
from tuner.spec import ArmSection, StudySpec
from tuner.stages import judging_stages

NOTHING: Mapping[str, Any] = MappingProxyType({})
TRAINING_METRIC = re.compile(r"train", re.IGNORECASE)
IMAGENET = ((0.1, 0.1), (1e-4, 1e-4))  # learning rate, weight decay
SMALL_DATA = 50_000  # CIFAR's training examples, for which the values are in use, too


@dataclass(frozen=True)
class Advice:
    """A known mistake in a study: its code, and the key or arm where it is."""

    code: str
    where: str

    def __str__(self) -> str:
        return f"{self.code}: {self.where}: {MISTAKES[self.code]}"


def warnings_for(spec: StudySpec, found: Mapping[str, Any] = NOTHING) -> list[Advice]:
    """The known mistakes in a study that it does not silence; pure.

    `found` is what the check job found out (`tuner.check`): "traits" of the model, "n_train",
    "validates_on_train" and "reseeds".
    """
    everything = [
        *(advice for arm in spec.arms for advice in _of_arm(spec, arm, found)),
        *_between_arms(spec),
        *_of_protocol(spec, found),
    ]
    return [advice for advice in everything if advice.code not in spec.run.silence]


def _of_arm(spec: StudySpec, arm: ArmSection, found: Mapping[str, Any]) -> Iterator[Advice]:
    rule, box, where = get_rule(arm.optimizer), spec.box(arm), f"arm {arm.name!r}"
    arguments = {
        **rule.arguments,
        **arm.optimizer_args,
        "weight_decay": decay_box(box, rule)[1],
        "clip_norm": arm.clip_norm,
        "clip_value": arm.clip_value,
        "schedule": schedules.create(arm.schedule, **arm.schedule_args),
    }
    for code in find(rule, arguments, frozenset(found.get("traits", ()))):
        yield Advice(code, where)
    values = (box.lr, box.weight_decay)
    if rule.name == "sgd" and values == IMAGENET and found.get("n_train", SMALL_DATA) < SMALL_DATA:
        yield Advice("OPT004", f"{where}, {found['n_train']} training examples")
    if _fixed_lr(spec, arm) is not None and len(box.batch_size) > 1:
        sizes = f"batch sizes {box.batch_size[0]} to {box.batch_size[-1]}"
        scaled = f"lr = {box.lr[0]} is given for {box.reference} and scaled by rule of thumb"
        yield Advice("OPT007", f"{where}, {sizes}, {scaled}")


def _between_arms(spec: StudySpec) -> Iterator[Advice]:
    for one, other in combinations(spec.arms, 2):
        lr, sizes = _fixed_lr(spec, one), [spec.box(arm).batch_size for arm in (one, other)]
        same = one.optimizer == other.optimizer and lr == _fixed_lr(spec, other)
        if same and lr is not None and sizes[0] != sizes[1]:
            yield Advice("OPT007", f"arms {one.name!r} and {other.name!r}, both with lr = {lr}")


def _fixed_lr(spec: StudySpec, arm: ArmSection) -> float | None:
    """The one learning rate of an arm whose rule wants it to follow the batch size."""
    lr = spec.box(arm).lr
    scaled = get_rule(arm.optimizer).batch_scaling != "none"
    return lr[0] if scaled and lr != "auto" and lr[0] == lr[1] else None


def _of_protocol(spec: StudySpec, found: Mapping[str, Any]) -> Iterator[Advice]:
    seeds = {"confirm": spec.budget.confirm_seeds, "decide": spec.budget.decide_seeds}
    if sum(seeds[stage] for stage in judging_stages(spec)) == 1:
        yield Advice("OPT005", "budget")
    if TRAINING_METRIC.match(spec.study.metric):
        yield Advice("OPT006", f"study.metric = {spec.study.metric!r}")
    if found.get("reseeds"):
        yield Advice("OPT008", f"task {spec.study.task!r}")
    if found.get("validates_on_train"):
        yield Advice("OPT006", f"task {spec.study.task!r} validates on its training data")
