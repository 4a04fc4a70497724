"""Any schedule as a torch LRScheduler, for any optimizer."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.optim.lr_scheduler import LRScheduler

from optimizers.schedules.base import Schedule


class ScheduleLR(LRScheduler):
    """Sets each group's learning rate, and its momentum if the schedule cycles that.

    Everything follows from the group's initial learning rate, the number of steps and the
    metrics reported, so a change of ``group["lr"]`` by hand lasts until the next ``step()``.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        schedule: Schedule,
        total_steps: int,
        last_epoch: int = -1,
    ) -> None:
        self.schedule = schedule
        self.total_steps = total_steps
        self.memory: dict[str, float] = {}
        super().__init__(optimizer, last_epoch)

    def get_lr(self) -> list[float | Tensor]:
        """The learning rates of the next step, per group."""
        factor = self.schedule.factor(self.last_epoch, self.total_steps, self.memory)
        return [lr * factor for lr in self.base_lrs]

    def _update_lr(self, epoch: int | None = None) -> None:
        super()._update_lr(epoch)
        momentum = self.schedule.momentum(self.last_epoch, self.total_steps)
        if momentum is not None:
            for group in self.optimizer.param_groups:
                cycle(group, momentum)

    def report(self, metric: float) -> None:
        """Tell a metric to a schedule that waits for one; raises TypeError for the others."""
        self.memory = self.schedule.observe(self.memory, metric)
        self._apply()

    def state_dict(self) -> dict[str, Any]:
        """What changes: plain numbers, loadable with ``weights_only=True``."""
        keys = ("base_lrs", "last_epoch", "memory", "_step_count", "_last_lr")
        return {key: getattr(self, key) for key in keys}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a checkpoint; the groups get their learning rates at once."""
        super().load_state_dict(state_dict)
        self._apply()

    def _apply(self) -> None:
        self.last_epoch -= 1
        self._update_lr()


def cycle(group: dict[str, Any], momentum: float) -> None:
    """Set a group's momentum or beta1 unless that is zero."""
    if group.get("momentum"):
        group["momentum"] = momentum
    elif "betas" in group and group["betas"][0]:
        group["betas"] = (momentum, *group["betas"][1:])


def to_lr_scheduler(
    optimizer: torch.optim.Optimizer, schedule: Schedule, total_steps: int, last_epoch: int = -1
) -> ScheduleLR:
    """The schedule as a torch LRScheduler for any optimizer; ``step()`` it after every batch."""
    return ScheduleLR(optimizer, schedule, total_steps, last_epoch)
