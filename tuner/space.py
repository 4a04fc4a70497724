"""What an arm searches: a box from its rule's row, its LR range test and the study file.

A *point* is what the sampler sees: the learning rate at the reference batch size, the batch size
and the weight decay. A *configuration* is what a run uses: the learning rate moved to the run's own
batch size by the rule's coupling (linear for SGD-like rules, McCandlish et al. 2018,
arXiv:1812.06162; square root for Adam-like ones, Malladi et al. 2022, arXiv:2205.10287).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

from optimizers import get_rule, schedules
from optimizers.core import BatchScaling, Hyper, Rule
from tuner.records import Configuration, LrCurve
from tuner.spec import ArmSection, SearchSection, StudySpec

Point = dict[str, float]

_EXPONENT: dict[BatchScaling, float] = {"linear": 1.0, "sqrt": 0.5, "none": 0.0}


@dataclass(frozen=True)
class Dimension:
    """One axis: an interval `low..high`, or ordered `values`; a single value is a fixed one.

    The sampler sees a `coordinate`, which runs from `start` to `end`: the place among `values`, one
    minus the value (`complement`, for betas), or the value itself.
    """

    name: str
    low: float
    high: float
    log: bool = False
    values: tuple[int, ...] = ()
    complement: bool = False

    @property
    def start(self) -> float:
        """The lowest coordinate."""
        return 0 if self.values else 1 - self.high if self.complement else self.low

    @property
    def end(self) -> float:
        """The highest coordinate."""
        if self.values:
            return len(self.values) - 1
        return 1 - self.low if self.complement else self.high

    def coordinate(self, value: float) -> float:
        """Where a value lies on the axis."""
        if self.values:
            return self.values.index(int(value))
        return min(max(1 - value if self.complement else value, self.start), self.end)

    def value(self, coordinate: float) -> float:
        """The value at a place of the axis."""
        if self.values:
            return self.values[int(coordinate)]
        return self.clip(1 - coordinate if self.complement else float(coordinate))

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
            return self.value(self.start * (self.end / self.start) ** fraction)
        return self.value(self.start + fraction * (self.end - self.start))


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
        *(_searched(name, given, _row(arm, name)) for name, given in arm.search.items()),
    )


def _row(arm: ArmSection, name: str) -> Hyper:
    """The row of a number that belongs to the arm's optimizer or to its schedule."""
    hypers = get_rule(arm.optimizer).hypers
    return hypers[name] if name in hypers else schedules.get_schedule(arm.schedule).numbers()[name]


def _searched(name: str, given: Literal["auto"] | tuple[float, float], row: Hyper) -> Dimension:
    low, high = (row.low, row.high) if given == "auto" else given
    if row.integer:
        values = tuple(range(math.ceil(low), math.floor(high) + 1))
        return Dimension(name, values[0], values[-1], values=values)
    log = row.log and low > 0 and not (row.complement and high >= 1)
    return Dimension(name, low, high, log=log, complement=row.complement)


def default_point(spec: StudySpec, arm: ArmSection) -> Point:
    """The published defaults of the arm's rule, at the reference batch size."""
    rule = get_rule(arm.optimizer)
    box = spec.box(arm)
    return {
        "lr": rule.hypers["lr"].default,
        "batch_size": min(box.batch_size, key=lambda b: abs(b - box.reference)),
        "weight_decay": _default_decay(rule),
        **{name: _row(arm, name).default for name in arm.search},
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
        **{name: point[name] for name in arm.search},
    }


def configuration(arm: ArmSection, params: dict[str, Any]) -> Configuration:
    """The full configuration of a run of this arm."""
    hypers = get_rule(arm.optimizer).hypers
    tuned = {k: params[k] for k in ("lr", "weight_decay", *arm.search) if k in hypers}
    shape = {k: params[k] for k in arm.search if k not in hypers}
    return Configuration(
        optimizer=arm.optimizer,
        optimizer_args={**arm.optimizer_args, **arm.clip, **tuned},
        wrapper=arm.wrapper,
        wrapper_args=arm.wrapper_args,
        schedule=arm.schedule,
        schedule_args={**arm.schedule_args, **shape},
        batch_size=params["batch_size"],
    )
