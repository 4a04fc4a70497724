"""The numbers that a rule sees for a param group: its values, the schedule's factor, momentum."""

from __future__ import annotations

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


class Reader:
    """A group's own values, flat, which are read again when one of them has been replaced."""

    def __init__(self, rule: Rule) -> None:
        self.rule, self.names = rule, tuple(rule.arguments)
        self.found: list[Any] = []
        self.flat: dict[str, Any] = {}
        self.values: Values | None = None  # of the last step, as long as a next one sees the same

    def read(self, group: Group) -> dict[str, Any]:
        """Values per hyperparameter and option, not to be changed."""
        found = [*map(group.__getitem__, self.names)]
        if found != self.found:
            if self.found and self.found[1:] == found[1:] and type(found[0]) is float:
                self.flat[self.names[0]] = found[0]  # the learning rate, by an LR scheduler
                self.found = found
            else:
                self.flat = {
                    key: float(value) if isinstance(value, Tensor) else value
                    for key, value in self.rule.flatten(group).items()
                }
                self.found = found if all(map(constant, found)) else []
            self.values = None
        return self.flat


def group_values(
    reader: Reader, group: Group, schedule: Schedule | None, total_steps: int | None
) -> Values:
    """The numbers and options that a rule sees for a group, schedule included.

    The same object as in the last step where neither a value nor a schedule has changed any.
    """
    rule, flat = reader.rule, reader.read(group)
    initial = group.get("initial_lr")
    still = schedule is None and not initial and rule.model is None
    if still and reader.values is not None:
        return reader.values
    factor = scheduled_factor(group, schedule, total_steps)
    # an LR scheduler on top counts as schedule too: independent decay follows it, and a learning
    # rate of zero stops it (torch.distributed.checkpoint allocates state by such a step)
    pace = flat["lr"] / float(initial) if initial else float(flat["lr"] != 0)
    seen = {**flat, "schedule": factor * pace, "lr": flat["lr"] * factor}
    for name, value in cycled(rule, group, schedule, total_steps).items():
        if flat.get(name):
            seen[name] = value
    values = Values(**seen, **group.get("shared", {}))
    reader.values = values if still else None
    return values
