"""What an arm searches: a box from its rule's row, its LR range test and the study file.

A *point* is what the sampler sees: the learning rate at the reference batch size, the batch size
and the weight decay. A *configuration* is what a run uses: the learning rate moved to the run's own
batch size by the rule's coupling (linear for SGD-like rules, McCandlish et al. 2018,
arXiv:1812.06162; square root for Adam-like ones, Malladi et al. 2022, arXiv:2205.10287).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from optimizers import get_rule
from optimizers.core import BatchScaling, Rule
from tuner.records import Configuration, LrCurve
from tuner.spec import ArmSection, SearchSection, StudySpec

Point = dict[str, float]

_EXPONENT: dict[BatchScaling, float] = {"linear": 1.0, "sqrt": 0.5, "none": 0.0}


@dataclass(frozen=True)
class Dimension:
    """One axis: an interval `low..high`, or ordered `values`; a single value is a fixed one."""

    name: str
    low: float
    high: float
    log: bool = False
    values: tuple[int, ...] = ()

    def contains(self, value: float) -> bool:
        """Whether the sampler could have proposed the value."""
        return value in self.values if self.values else self.low <= value <= self.high

    def clip(self, value: float) -> float:
        """The nearest value that the sampler could propose."""
        if self.values:
            return min(self.values, key=lambda v: abs(v - value))
        return min(max(value, self.low), self.high)

    def at(self, fraction: float) -> float:
        """The value at a fraction in [0, 1) of the axis."""
        if self.values:
            return self.values[int(fraction * len(self.values))]
        if self.log:
            return self.clip(float(self.low * (self.high / self.low) ** fraction))
        return self.low + fraction * (self.high - self.low)


Space = tuple[Dimension, ...]


def scale_lr(lr: float, batch_size: int, reference: int, scaling: BatchScaling) -> float:
    """The learning rate at `batch_size` that corresponds to `lr` at the `reference` batch size."""
    return float(lr * (batch_size / reference) ** _EXPONENT[scaling])


def _interval(name: str, bounds: tuple[float, float]) -> Dimension:
    return Dimension(name, bounds[0], bounds[1], log=bounds[0] > 0)


def lr_box(box: SearchSection, rule: Rule, curve: LrCurve | None) -> tuple[float, float]:
    """The learning rates to search: given, else from the range test, else the rule's own range."""
    if box.lr != "auto":
        return box.lr
    if curve is not None and curve.low is not None and curve.high is not None:
        return (curve.low, curve.high)
    return (rule.hypers["lr"].low, rule.hypers["lr"].high)


def decay_box(box: SearchSection, rule: Rule) -> tuple[float, float]:
    """The weight decays to search: given, else the rule's own range; 0 for a rule without decay."""
    if box.weight_decay != "auto":
        return box.weight_decay
    decay = rule.hypers.get("weight_decay")
    return (decay.low, decay.high) if decay else (0.0, 0.0)


def arm_space(spec: StudySpec, arm: ArmSection, curve: LrCurve | None) -> Space:
    """The box that an arm searches, jointly."""
    box, rule = spec.box(arm), get_rule(arm.optimizer)
    return (
        _interval("lr", lr_box(box, rule, curve)),
        Dimension("batch_size", box.batch_size[0], box.batch_size[-1], values=box.batch_size),
        _interval("weight_decay", decay_box(box, rule)),
    )


def default_point(spec: StudySpec, arm: ArmSection) -> Point:
    """The published defaults of the arm's rule, at the reference batch size."""
    rule = get_rule(arm.optimizer)
    box = spec.box(arm)
    return {
        "lr": rule.hypers["lr"].default,
        "batch_size": min(box.batch_size, key=lambda b: abs(b - box.reference)),
        "weight_decay": _default_decay(rule),
    }


def suggested_point(spec: StudySpec, arm: ArmSection, curve: LrCurve | None) -> Point:
    """The first guess: the range test's suggestion with everything else at its default."""
    start = default_point(spec, arm)
    if curve is not None and curve.suggested_lr is not None:
        start["lr"] = curve.suggested_lr
    return {d.name: d.clip(start[d.name]) for d in arm_space(spec, arm, curve)}


def _default_decay(rule: Rule) -> float:
    decay = rule.hypers.get("weight_decay")
    return decay.default if decay else 0.0


def used_params(spec: StudySpec, arm: ArmSection, point: Point) -> dict[str, Any]:
    """What a run at this point uses, the learning rate moved to its batch size."""
    rule, batch_size = get_rule(arm.optimizer), int(point["batch_size"])
    reference = spec.box(arm).reference
    return {
        "lr": scale_lr(point["lr"], batch_size, reference, rule.batch_scaling),
        "batch_size": batch_size,
        "weight_decay": point["weight_decay"],
    }


def configuration(arm: ArmSection, params: dict[str, Any]) -> Configuration:
    """The full configuration of a run of this arm."""
    clip = {k: getattr(arm, k) for k in ("clip_norm", "clip_value") if getattr(arm, k) is not None}
    tuned = {"lr": params["lr"]}
    if "weight_decay" in get_rule(arm.optimizer).hypers:
        tuned["weight_decay"] = params["weight_decay"]
    return Configuration(
        optimizer=arm.optimizer,
        optimizer_args={**arm.optimizer_args, **clip, **tuned},
        schedule=arm.schedule,
        schedule_args=arm.schedule_args,
        batch_size=params["batch_size"],
    )
