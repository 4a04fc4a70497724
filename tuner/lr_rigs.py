"""What a range test trains: a model and optimizer that start again from one snapshot, many times.

A rig takes optimizer steps on numbered training batches at a given learning rate, measures the
loss of common held-out batches, and resets everything, random numbers included. So short runs at
different learning rates differ in nothing but the rate.
"""

from __future__ import annotations

import contextlib
import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from optimizers.schedules import Schedule, constant, create, plateau
from optimizers.wrappers import frozen_statistics
from tuner.data import to_device
from tuner.lr_arguments import Loss
from tuner.lr_axis import Axis
from tuner.lr_batches import Batches, Split
from tuner.lr_response import Gradients, cap, response
from tuner.seeding import restore_rng, rng_state
from tuner.snapshot import Restore, nested, snapshot
from tuner.workload import Workload

# Held-out batches that a test asks for at most.
MOST_LOOKS = 32
WARMUP = 0.1  # of the schedule assumed where none is given
# Numbers of steps after which a rule does something rare; a short run has to see it twice.
GROWTH = 15  # Prodigy's estimate has grown from nothing after about so many
REFRESHES = ("precondition_frequency", "update_period", "lookahead_k")


class Rig(Protocol):
    """What the search needs of a training run; `steps` and `looks` count what it has cost."""

    steps: int  # optimizer steps
    looks: int  # forward passes over held-out batches
    most_looks: int  # held-out batches there are

    def reset(self) -> None:
        """Back to the snapshot: parameters, buffers, optimizer, random numbers."""

    def step(self, index: int, lr: float, factor: float = 1.0) -> float:
        """One optimizer step on training batch `index` at `factor` times the peak `lr`.

        Returns the loss before the step.
        """

    def warm(self, steps: int) -> None:
        """Take steps at a rate of zero from the snapshot, and make what comes out the snapshot."""

    def response(self, lr: float) -> float:
        """How far updates follow the gradient's length, 0 to 1; costs one step and many updates.

        At a rate so low that the parameters hardly move.
        """

    def cap(self, low: float, high: float) -> float:
        """The rate above which all rates are the same, inf if none; costs one step and updates."""

    def held_out(self, batches: int) -> list[float]:
        """Losses of the first held-out batches at the present point, in evaluation mode."""


class _Rig(ABC):
    def __init__(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, axis: Axis, restore: Restore
    ) -> None:
        self.model, self.optimizer, self.axis = model, optimizer, axis
        self.steps = self.looks = 0
        self._restore, self._rng = restore, rng_state()

    def reset(self) -> None:
        """Back to the snapshot."""
        self._restore()
        restore_rng(self._rng)
        switch_off_schedules(self.optimizer)
        self.model.train()
        call(self.optimizer, "train")

    def step(self, index: int, lr: float, factor: float = 1.0) -> float:
        """One optimizer step."""
        self.axis.set(lr, factor)
        self.steps += 1
        return self._train(index)

    def warm(self, steps: int) -> None:
        """Moments of the optimizer fill, parameters stay; `preserved` outside keeps the rest."""
        self.reset()
        for index in range(steps):
            self.step(index, 0.0)
        outer, warmed = self._restore, snapshot(self.model, self.optimizer)

        def restore() -> None:
            outer()
            warmed()

        self._restore = restore

    def response(self, lr: float) -> float:
        """Of the parameters that the axis moves, from the moments of the snapshot."""
        restart = self._replays()
        return response(self.axis.params, self._update, lambda: restart(lr))

    def cap(self, low: float, high: float) -> float:
        """Of the parameters that the axis moves, from the moments of the snapshot."""
        return cap(self.axis.params, self._update, self._replays(), low, high)

    def _replays(self) -> Callable[[float], Gradients]:
        """Goes back to the snapshot, at a rate, with the gradients of the first batch."""
        self.reset()
        self.step(0, 0.0)
        gradients = [None if p.grad is None else p.grad.detach().clone() for p in self.axis.params]

        def restart(lr: float) -> Gradients:
            self.reset()
            self.axis.set(lr, 1.0)
            return gradients

        return restart

    def _update(self) -> None:
        take_step(self.optimizer, lambda: torch.zeros(()))

    def held_out(self, batches: int) -> list[float]:
        """Losses of held-out batches; random numbers drawn here move nothing."""
        state = rng_state()
        self.looks += batches
        with torch.no_grad(), self._measuring():
            losses = [self._measure(index) for index in range(batches)]
        restore_rng(state)
        return losses

    @abstractmethod
    def _train(self, index: int) -> float: ...

    @abstractmethod
    def _measure(self, index: int) -> float: ...

    @contextlib.contextmanager
    def _measuring(self) -> Iterator[None]:
        """Evaluation mode, but BatchNorm normalises by the batch.

        Its running statistics lag behind by more steps than a short run has.
        """
        norms = [m for m in self.model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
        modes = [(module, module.training) for module in self.model.modules()]
        self.model.eval()
        call(self.optimizer, "eval")
        for norm in norms:
            norm.train()
        try:
            with frozen_statistics(self.model):
                yield
        finally:
            call(self.optimizer, "train")
            for module, training in modes:
                module.training = training


class LoaderRig(_Rig):
    """A user's own model, optimizer, loaders and loss."""

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        axis: Axis,
        restore: Restore,
        *,
        train: Batches,
        held_out: Batches,
        split: Split,
        loss: Loss,
        accumulation: int = 1,
        scaler: Any = None,
        amp_dtype: torch.dtype | None = None,
        max_grad_norm: float | None = None,
    ) -> None:
        super().__init__(model, optimizer, axis, restore)
        self.train, self.kept, self.split, self.loss = train, held_out, split, loss
        self.most_looks = split.held if held_out is train else held_out.judges or MOST_LOOKS
        self.accumulation, self.max_grad_norm = accumulation, max_grad_norm
        self.amp_dtype, self._users_scaler = amp_dtype, scaler
        self.scaler: Any = None
        self.device = next((p.device for p in model.parameters()), torch.device("cpu"))

    def reset(self) -> None:
        """Back to the snapshot, with a copy of the user's scaler."""
        super().reset()
        self.scaler = copy.deepcopy(self._users_scaler)
        self.train.restart()

    def _train(self, index: int) -> float:
        first = index * self.accumulation
        numbers = range(first, first + self.accumulation)
        batches = [self.split.training(self.train.__getitem__, number) for number in numbers]
        statistics = getattr(self.optimizer, "statistics", None)

        def gradients() -> Tensor:
            self.optimizer.zero_grad(set_to_none=True)
            total = torch.zeros((), device=self.device)
            for batch in batches:
                with contextlib.nullcontext() if statistics is None else statistics(self.model):
                    loss = self._loss(batch) / len(batches)
                (loss if self.scaler is None else self.scaler.scale(loss)).backward()
                total += loss.detach().float()
            if self.scaler is not None and (self.max_grad_norm is not None):
                self.scaler.unscale_(self.optimizer)
            if self.max_grad_norm is not None:
                nn.utils.clip_grad_norm_(self.model.parameters(), self.max_grad_norm)
            return total

        return float(take_step(self.optimizer, gradients, self.scaler))

    def _measure(self, index: int) -> float:
        return float(self._loss(self.split.judging(self.kept.__getitem__, index)))

    def _loss(self, batch: Any) -> Tensor:
        moved = to_device(batch, self.device)
        if self.amp_dtype is None:
            return self.loss(self.model, moved)
        with torch.autocast(self.device.type, dtype=self.amp_dtype):
            return self.loss(self.model, moved)


class WorkloadRig(_Rig):
    """A task of the tuner; `on_val` measures on validation examples."""

    def __init__(
        self, work: Workload, axis: Axis, restore: Restore, split: Split, on_val: bool
    ) -> None:
        super().__init__(work.model, work.optimizer, axis, restore)
        self.work, self.split, self.on_val = work, split, on_val
        on_val_looks = min(MOST_LOOKS, max(1, work.val_size // work.batch_size)) if on_val else 0
        self.most_looks = on_val_looks or split.held
        self._order = work.batches()
        self._seen: list[Tensor] = []

    def _train(self, index: int) -> float:
        return self.work.step(self.split.training(self._indices, index))

    def _measure(self, index: int) -> float:
        if not self.on_val:
            return self.work.measure(self.split.judging(self._indices, index))
        size = self.work.val_size
        start = index * self.work.batch_size
        return self.work.measure(torch.arange(start, start + self.work.batch_size) % size, val=True)

    def _indices(self, number: int) -> Tensor:
        while len(self._seen) <= number:
            self._seen.append(next(self._order))
        return self._seen[number]


def take_step(
    optimizer: torch.optim.Optimizer, gradients: Callable[[], Tensor], scaler: Any = None
) -> Tensor:
    """One step in the way that the optimizer wants it; returns the loss before it."""
    if getattr(optimizer, "passes", 1) > 1:
        loss: Tensor = optimizer.step(gradients)  # type: ignore[arg-type, assignment]
        return loss
    loss = gradients()
    if getattr(optimizer, "hessian_due", False):
        optimizer.update_hessian()  # type: ignore[attr-defined]
    if hasattr(optimizer, "first_step") and hasattr(optimizer, "second_step"):
        optimizer.first_step(zero_grad=True)  # SAM as others write it
        gradients()
        optimizer.second_step(zero_grad=True)
    elif scaler is not None:
        scaler.step(optimizer)
        scaler.update()
    else:
        optimizer.step()
    return loss


def switch_off_schedules(optimizer: torch.optim.Optimizer) -> None:
    """A range test sets every learning rate itself."""
    for each in nested(optimizer):
        if "schedule" in vars(each):
            each.schedule = None  # type: ignore[attr-defined]


def schedule_of(optimizer: torch.optim.Optimizer, given: Schedule | None = None) -> Schedule:
    """The schedule that short runs follow: the run's own, else warm-up and cosine.

    A schedule-free rule gets a warm-up alone, and so does one that waits for a metric.
    """
    inside = next((s for s in (vars(o).get("schedule") for o in nested(optimizer)) if s), None)
    schedule = given or inside
    free = any("evaluating" in g or "train_mode" in g for g in optimizer.param_groups)
    rule = getattr(optimizer, "rule", None)
    free = free or getattr(rule, "points", None) is not None
    if isinstance(schedule, plateau) or (schedule is None and free):
        return constant(warmup=WARMUP)
    return schedule or create("warmup_cosine", warmup=WARMUP)


def refresh_of(optimizer: torch.optim.Optimizer) -> int:
    """The largest number of steps between two rare updates of the rule, 1 if it has none."""
    groups = optimizer.param_groups
    found = [group[name] for group in groups for name in REFRESHES if name in group]
    found += [GROWTH for group in groups if "d_coef" in group]
    return max((int(each) for each in found if math.isfinite(each)), default=1)


def call(owner: object, method: str) -> None:
    """Call a method that only some optimizers have."""
    getattr(owner, method, lambda: None)()
