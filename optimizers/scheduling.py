"""The numbers that a rule sees for a param group: its values, the schedule's factor, momentum."""

from __future__ import annotations

from collections.abc import Callable
from operator import not_
from typing import Any

from torch import Tensor

from optimizers.core import Rule, Values
from optimizers.schedules import Schedule

Group = dict[str, Any]


def check_schedule(owner: str, schedule: Schedule | None, total_steps: int | None) -> None:
    """Raise TypeError or ValueError, in one line, unless schedule and length fit together."""
    if total_steps is not None and not total_steps > 0:
        raise ValueError(f"{owner}: total_steps={total_steps!r} is not valid; allowed: > 0")
    if schedule is None:
        return
    if not isinstance(schedule, Schedule):
        raise TypeError(
            f"{owner}: schedule={schedule!r} is not valid; allowed: a schedule of "
            "optimizers.schedules, such as schedules.warmup_cosine(warmup=0.05)"
        )
    if schedule.needs_total_steps and total_steps is None:
        raise ValueError(f"{owner}: schedule {schedule.name!r} needs total_steps=...")


def scheduled_factor(group: Group, schedule: Schedule | None, total_steps: int | None) -> float:
    """What multiplies a group's learning rate in its next step."""
    if schedule is None:
        return 1.0
    memory = group.get("schedule_memory", {})
    return schedule.factor(group["schedule_step"], total_steps or 1, memory)


def cycled(
    rule: Rule, group: Group, schedule: Schedule | None, total_steps: int | None
) -> dict[str, float | None]:
    """Momentum and beta1 as the schedule moves them; nothing for schedules that do not.

    Rules that evaluate at another point keep theirs, since it says where that point is.
    """
    if schedule is None or rule.points is not None:
        return {}
    momentum = schedule.momentum(group["schedule_step"], total_steps or 1)
    return {} if momentum is None else {"momentum": momentum, "beta1": momentum}


def constant(value: object) -> bool:
    """Whether a value in a group cannot change without being replaced."""
    if isinstance(value, tuple):
        return all(map(constant, value))
    return value is None or isinstance(value, float | int | str)


# what else of a group decides how it is stepped
BESIDE = ("rule", "weight_decay_mode", "maximize", "evaluating", "initial_lr")


def zero_pattern(rule: Rule, values: Values) -> tuple[bool, ...]:
    """Which hyperparameters are zero: on that the state may depend (momentum)."""
    return tuple(map(not_, map(vars(values).__getitem__, rule.hypers)))


class Reader:
    """A group's own values, which are read again when one of them has been replaced.

    ``kind`` is the same object as long as only a schedule or an LR scheduler has changed numbers,
    and none from zero or to it; never for rules that know all parameters.
    """

    def __init__(self, rule_of: Callable[[Group], Rule]) -> None:
        self.rule_of = rule_of
        self.names: tuple[str, ...] = ()
        self.found: list[Any] = []
        self.flat: dict[str, Any] = {}  # per hyperparameter and option
        self.still: Values | None = None  # of the last step, if nothing but values decides on them
        self.kind = object()
        self.zeros: tuple[bool, ...] = ()

    def values(self, group: Group, schedule: Schedule | None, total_steps: int | None) -> Values:
        """The numbers and options that a rule sees for a group, schedule included.

        The same object as in the last step where nothing has changed that decides how the group is
        stepped; where a schedule does, another one.
        """
        found = [*map(group.get, self.names)]
        if found != self.found or not found:
            self.read(group, found)
        elif self.still is not None and schedule is None:
            return self.still
        rule = self.rule_of(group)
        values = scheduled(rule, self.flat, group, schedule, total_steps)
        zeros = zero_pattern(rule, values)
        if zeros != self.zeros or rule.model is not None:
            self.kind, self.zeros = object(), zeros
        self.still = values if schedule is None and rule.model is None else None
        return values

    def read(self, group: Group, found: list[Any]) -> None:
        """Take over what has been found under the names, which depend on the rule."""
        if self.found and self.found[1:] == found[1:] and type(found[0]) is float:
            self.flat[self.names[0]] = found[0]  # the learning rate, by an LR scheduler
            self.found = found
            return
        self.kind, rule = object(), self.rule_of(group)
        self.names = (*rule.arguments, *BESIDE)
        self.flat = {
            key: float(value) if isinstance(value, Tensor) else value
            for key, value in rule.flatten(group).items()
        }
        found = [*map(group.get, self.names)]
        self.found = found if all(map(constant, found)) else []


def scheduled(
    rule: Rule,
    flat: dict[str, Any],
    group: Group,
    schedule: Schedule | None,
    total_steps: int | None,
) -> Values:
    """A group's own values as the rule sees them in the next step."""
    factor, initial = scheduled_factor(group, schedule, total_steps), group.get("initial_lr")
    # an LR scheduler on top counts as schedule too: independent decay follows it, and a learning
    # rate of zero stops it (torch.distributed.checkpoint allocates state by such a step)
    pace = flat["lr"] / float(initial) if initial else float(flat["lr"] != 0)
    seen = {**flat, "schedule": factor * pace, "lr": flat["lr"] * factor}
    for name, value in cycled(rule, group, schedule, total_steps).items():
        if flat.get(name):
            seen[name] = value
    return Values(**seen, **group.get("shared", {}))
