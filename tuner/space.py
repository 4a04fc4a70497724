"""What an arm searches: a box from its rule's row, its LR range test and the study file.

A *point* is what the sampler sees: the learning rate at the reference batch size, the batch size
and the weight decay. A *configuration* is what a run uses:

- The learning rate is moved to the run's own batch size by the rule's coupling (linear for SGD-like
  rules, McCandlish et al. 2018, arXiv:1812.06162; square root for Adam-like ones, Malladi et al.
  2022, arXiv:2205.10287).
- A sum of past steps grows by 1 / (1 - momentum). Where momentum is searched and the range of the
  learning rate comes from a range test, a point holds the rate at the momentum of that test, and a
  run at another momentum uses what moves the weights as fast.
- Decoupled decay shrinks weights by lr times weight_decay a step, and that product is what matters
  (Loshchilov and Hutter 2019, arXiv:1711.05101). Where the range is the rule's own, a point holds
  the decay at the rule's default learning rate, and a run at k times that rate uses a k-th of it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, Literal

from optimizers import get_rule, schedules
from optimizers.core import BatchScaling, Hyper, Rule
from optimizers.wrappers import WRAPPERS
from tuner.records import BELOW_DIVERGENCE, Configuration, LrCurve
from tuner.spec import ArmSection, SearchSection, StudySpec, WarmArm

Point = dict[str, float]
Bounds = Mapping[str, tuple[float, float]]  # by axis

# The tuning playbook (Godbole et al. 2023): with fewer than 10 trials the learning rate, with 10 to
# 25 beta1 as well, with more epsilon, too. A row's priority says which of them it is.
_JOIN_AT = {1: 1, 2: 10, 3: 25}
_SHAPE_AT = 25  # the schedule's numbers and the limit of clipping
_TRIALS_AN_AXIS = 4  # fewer would only thin out what is known of the others
_IDLE = 0.01  # of the weights: a decay that takes no more from them over a whole run does nothing
_CLIP_SPAN = 10.0  # a clipping limit is searched this far around the one given

NOT_WIDENED: Bounds = MappingProxyType({})
_EXPONENT: dict[BatchScaling, float] = {"linear": 1.0, "sqrt": 0.5, "none": 0.0}


@dataclass(frozen=True)
class Dimension:
    """One axis: an interval `low..high`, or ordered `values`; a single value is a fixed one.

    The sampler sees a `coordinate`, which runs from `start` to `end`: the place among `values`, one
    minus the value (`complement`, for betas), or the value itself. Its distances on a log axis are
    those of log(coordinate + `idle`): values far below `idle` do the same, which is nothing.
    A search begins with the `usual` value more often than with the others. The longer a run, the
    more a `gradual` number does: short runs do not tell which of its values full ones need.
    """

    name: str
    low: float
    high: float
    log: bool = False
    values: tuple[int, ...] = ()
    complement: bool = False
    idle: float = 0.0
    usual: float | None = None
    gradual: bool = False

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
            start, end = self.start + self.idle, self.end + self.idle
            return self.value(start * (end / start) ** fraction - self.idle)
        return self.value(self.start + fraction * (self.end - self.start))

    def fraction(self, value: float) -> float:
        """Where a value lies on the axis, from 0 to 1: `at` backwards."""
        at = self.coordinate(value)
        if self.values:
            return (at + 0.5) / len(self.values)
        if self.log:
            start, end = self.start + self.idle, self.end + self.idle
            return math.log((at + self.idle) / start) / math.log(end / start)
        return (at - self.start) / (self.end - self.start)


Space = tuple[Dimension, ...]


def scale_lr(lr: float, batch_size: int, reference: int, scaling: BatchScaling) -> float:
    """The learning rate at `batch_size` that corresponds to `lr` at the `reference` batch size."""
    return float(lr * (batch_size / reference) ** _EXPONENT[scaling])


def lr_at(arm: ArmSection, lr: float, batch_size: int, reference: int) -> float:
    """`scale_lr` by the coupling of the arm's rule."""
    return scale_lr(lr, batch_size, reference, get_rule(arm.optimizer).batch_scaling)


def _interval(name: str, bounds: tuple[float, float]) -> Dimension:
    return Dimension(name, bounds[0], bounds[1], log=bounds[0] > 0)


def lr_box(
    box: SearchSection, rule: Rule, curve: LrCurve | None, warm: WarmArm | None = None
) -> tuple[float, float]:
    """The learning rates to search: given, else of an older study, else from the range test.

    Without any of them the rule's own range, which is made for long runs. A test that suggests
    nothing may still have seen how far up training goes, and short runs may need rates up there.
    """
    if box.lr != "auto":
        return box.lr
    if warm is not None and warm.lr is not None:
        return warm.lr
    if curve is not None and curve.low is not None and curve.high is not None:
        return (curve.low, curve.high)
    low, high = rule.hypers["lr"].low, rule.hypers["lr"].high
    if curve is not None and curve.diverges_at is not None:
        high = max(high, curve.diverges_at / BELOW_DIVERGENCE)
    return low, high


def decay_box(box: SearchSection, rule: Rule) -> tuple[float, float]:
    """The weight decays to search: given, else the rule's own range; 0 for a rule without decay."""
    if box.weight_decay != "auto":
        return box.weight_decay
    decay = rule.hypers.get("weight_decay")
    return (decay.low, decay.high) if decay else (0.0, 0.0)


def arm_space(
    spec: StudySpec, arm: ArmSection, curve: LrCurve | None, widened: Bounds = NOT_WIDENED
) -> Space:
    """The box that an arm searches, jointly; `widened` replaces the bounds of some axes."""
    box, rule = spec.box(arm), get_rule(arm.optimizer)
    bounds = {
        "lr": lr_box(box, rule, curve, spec.warm.get(arm.name)),
        "weight_decay": decay_box(box, rule),
        **widened,
    }
    decay = replace(_interval("weight_decay", bounds["weight_decay"]), gradual=True)
    return (
        _interval("lr", bounds["lr"]),
        Dimension(
            "batch_size",
            box.batch_size[0],
            box.batch_size[-1],
            values=box.batch_size,
            # Of equally many steps those with the largest batches are rarely worse.
            usual=default_point(spec, arm)["batch_size"] if spec.budget.max_steps else None,
        ),
        replace(decay, idle=idle_decay(spec, arm, curve)) if decay.log else decay,
        *(
            _searched(name, widened.get(name, given), _row(arm, name))
            for name, given in searched(spec, arm).items()
        ),
    )


def idle_decay(spec: StudySpec, arm: ArmSection, curve: LrCurve | None) -> float:
    """The weight decay that shrinks the weights by `_IDLE` over a run at the suggested rate.

    Smaller ones are all alike, however many decades the box spends on them. 0 where nobody knows:
    without a suggestion, and where an adaptive rule divides the decay by the gradients' size.
    """
    rule = get_rule(arm.optimizer)
    mode = arm.optimizer_args.get("weight_decay_mode", rule.weight_decay_mode)
    if curve is None or curve.suggested_lr is None or curve.run_steps is None:
        return 0.0
    if mode == "decoupled":
        lr = rule.hypers["lr"].default if decay_is_coupled(spec, arm) else curve.suggested_lr
    elif mode == "l2" and rule.linear:
        lr = curve.suggested_lr / (1 - (_default(arm, rule.summed) if rule.summed else 0.0))
    else:
        return 0.0
    return _IDLE / (0.5 * lr * curve.run_steps)  # half of the peak is what schedules use of it


def searched(spec: StudySpec, arm: ArmSection) -> dict[str, Literal["auto"] | tuple[float, float]]:
    """Further numbers that an arm searches: those it names, and those that its budget affords.

    What the study file fixes stays fixed, and so does what is off by default (a momentum of 0).
    """
    box, rule, trials = spec.box(arm), get_rule(arm.optimizer), spec.budget.trials_per_arm
    found: dict[str, Literal["auto"] | tuple[float, float]] = dict(arm.search)
    if box.join == "none":
        return found
    free = (box.lr == "auto" or box.lr[0] < box.lr[1], len(box.batch_size) > 1, _decays(box, rule))
    axes = len(found) + sum(free)
    for name, least in _joinable(arm, rule):
        affordable = trials >= max(least, (axes + 1) * _TRIALS_AN_AXIS)
        if name not in found and (box.join == "all" or affordable):
            found[name] = "auto"
            axes += 1
    return found


def _joinable(arm: ArmSection, rule: Rule) -> list[tuple[str, int]]:
    """Numbers that nobody fixed, the most important first, with the trials that they need."""
    given = {*arm.optimizer_args, *arm.wrapper_args, *arm.schedule_args, "lr", "weight_decay"}
    given |= {flat for name in given for flat in rule.packs.get(name, ())}

    def free(rows: Mapping[str, Hyper]) -> dict[str, Hyper]:
        return {
            name: row
            for name, row in rows.items()
            if name not in given and row.priority and row.low <= row.default <= row.high
        }

    rows = {**free(_wrapper_rows(arm)), **free(rule.hypers)}
    own = sorted(rows, key=lambda name: rows[name].priority)
    shape = list(free(schedules.get_schedule(arm.schedule).numbers()))
    return [
        *((name, _JOIN_AT[rows[name].priority]) for name in own),
        *((name, _SHAPE_AT) for name in (*shape, *arm.clip) if name not in rows),
    ]


def _wrapper_rows(arm: ArmSection) -> dict[str, Hyper]:
    """The numbers of the arm's wrapper, but for those that its optimizer has, too."""
    rows = WRAPPERS[arm.wrapper].hypers if arm.wrapper else {}
    taken = get_rule(arm.optimizer).hypers
    return {k: row for k, row in rows.items() if isinstance(row, Hyper) and k not in taken}


def _decays(box: SearchSection, rule: Rule) -> bool:
    low, high = decay_box(box, rule)
    return low < high


def _row(arm: ArmSection, name: str) -> Hyper:
    """The row of a number of the arm's optimizer, wrapper, schedule or clipping."""
    if name in arm.clip:
        given = arm.clip[name]
        return Hyper(given, given / _CLIP_SPAN, given * _CLIP_SPAN, log=True, above=0.0)
    shape = schedules.get_schedule(arm.schedule).numbers()
    return {**shape, **_wrapper_rows(arm), **get_rule(arm.optimizer).hypers}[name]


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
        **{name: _default(arm, name) for name in searched(spec, arm)},
    }


def _default(arm: ArmSection, name: str) -> float:
    """What the arm uses where the number is not searched."""
    given = {**arm.schedule_args, **arm.wrapper_args, **arm.optimizer_args}
    return float(given.get(name, _row(arm, name).default))


def warmup_of(arm: ArmSection) -> float:
    """The share of a run in which the arm's learning rate rises, unless that is searched."""
    return float(schedules.create(arm.schedule, **arm.schedule_args).warmup)


def suggested_point(
    spec: StudySpec, arm: ArmSection, curve: LrCurve | None, widened: Bounds = NOT_WIDENED
) -> Point:
    """The first guess: the range test's suggestion with everything else at its default."""
    start = default_point(spec, arm)
    if curve is not None and curve.suggested_lr is not None:
        start["lr"] = curve.suggested_lr
    return inside(arm_space(spec, arm, curve, widened), start, start)


def inside(space: Space, point: Mapping[str, float], default: Mapping[str, float]) -> Point:
    """The nearest point of the box; an axis that the point lacks comes from `default`."""
    return {d.name: d.clip(point.get(d.name, default[d.name])) for d in space}


def _default_decay(rule: Rule) -> float:
    decay = rule.hypers.get("weight_decay")
    return decay.default if decay else 0.0


def decay_is_coupled(spec: StudySpec, arm: ArmSection) -> bool:
    """Whether the arm searches the product of learning rate and weight decay."""
    rule, box = get_rule(arm.optimizer), spec.box(arm)
    mode = arm.optimizer_args.get("weight_decay_mode", rule.weight_decay_mode)
    return mode == "decoupled" and box.weight_decay == "auto"


def momentum_factor(spec: StudySpec, arm: ArmSection, values: Mapping[str, float]) -> float:
    """What a point's learning rate is multiplied by for the momentum among `values`.

    The range test ran at the arm's own momentum, which need not lie in the range that is searched.
    """
    name = get_rule(arm.optimizer).summed
    if name is None or name not in searched(spec, arm) or spec.box(arm).lr != "auto":
        return 1.0
    first = _default(arm, name)
    return (1 - values.get(name, first)) / (1 - first)


def used_params(spec: StudySpec, arm: ArmSection, point: Point) -> dict[str, Any]:
    """What a run at this point uses, the learning rate moved to its batch size and momentum."""
    rule, batch_size = get_rule(arm.optimizer), int(point["batch_size"])
    lr = point["lr"] * momentum_factor(spec, arm, point)
    decay = point["weight_decay"]
    if decay_is_coupled(spec, arm):
        decay *= rule.hypers["lr"].default / lr
    return {
        "lr": scale_lr(lr, batch_size, spec.box(arm).reference, rule.batch_scaling),
        "batch_size": batch_size,
        "weight_decay": decay,
        **{
            name: int(value) if _row(arm, name).integer else value
            for name, value in point.items()
            if name not in ("lr", "batch_size", "weight_decay")
        },
    }


def point_of(spec: StudySpec, arm: ArmSection, params: Mapping[str, Any]) -> Point:
    """The point at which a run uses these values: `used_params` backwards."""
    rule, batch_size = get_rule(arm.optimizer), int(params["batch_size"])
    reference = spec.box(arm).reference
    lr = scale_lr(params["lr"], reference, batch_size, rule.batch_scaling)
    decay = float(params.get("weight_decay") or 0.0)
    if decay_is_coupled(spec, arm):
        decay *= lr / rule.hypers["lr"].default
    others = {k: float(params[k]) for k in searched(spec, arm) if k in params}
    lr /= momentum_factor(spec, arm, others)
    return {"lr": lr, "batch_size": batch_size, "weight_decay": decay, **others}


def configuration(arm: ArmSection, params: dict[str, Any]) -> Configuration:
    """The full configuration of a run of this arm."""
    rule = get_rule(arm.optimizer)
    shape = schedules.get_schedule(arm.schedule).numbers()
    own = {k: v for k, v in params.items() if k in rule.hypers or k in arm.clip}
    wrapped = _wrapper_rows(arm)
    rest = {k: v for k, v in params.items() if k not in own and k != "batch_size"}
    return Configuration(
        optimizer=arm.optimizer,
        optimizer_args={**arm.optimizer_args, **arm.clip, **own},
        wrapper=arm.wrapper,
        wrapper_args={**arm.wrapper_args, **{k: v for k, v in rest.items() if k in wrapped}},
        schedule=arm.schedule,
        schedule_args={
            **arm.schedule_args,
            **{k: v for k, v in rest.items() if k not in wrapped and k in shape},
        },
        batch_size=params["batch_size"],
    )
