"""The learning-rate range test: raise the rate every batch, watch the loss, undo everything.

A coarse ramp over many decades finds where training explodes; a fine ramp over the decades below
that gives the curve. So the answer does not depend on the range one starts with.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from tuner.data import to_device
from tuner.errors import UsageError
from tuner.lr_curve import MIN_POINTS, explosion, shape, starts_too_high, suggest
from tuner.records import Job, LrCurve
from tuner.snapshot import preserved
from tuner.workload import Workload

Step = Callable[[float], float]
Ramp = Callable[[Iterator[float]], list[tuple[float, float]]]
Progress = Callable[[int, int], None]

LOW, HIGH = 1e-8, 1e2
# A ramp that has not exploded goes on to this rate; no useful one is higher.
CEILING = 1e4
STEPS = 150
COARSE_SHARE = 1 / 3  # of the steps
# Where the fine ramp runs, around the explosion of the coarse one.
DECADES_BELOW, DECADES_ABOVE = 3.5, 0.5
# A ramp that starts too high starts again this much lower, at most so often.
LOWER, RESTARTS = 1e-3, 2


def find_lr(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    train_loader: Iterable[Any],
    loss: Callable[[nn.Module, Any], Tensor],
    *,
    low: float = LOW,
    high: float = HIGH,
    steps: int = STEPS,
) -> LrCurve:
    """Range test of a model and optimizer as they are; both, and all random state, are put back.

    `loss(model, batch)` returns the mean loss of a batch. Learning rates of parameter groups keep
    their ratios; a schedule inside the optimizer is switched off meanwhile. Rates from `low` to
    `high` are tried in about `steps` batches; both ends move when they turn out too narrow.

    Raises:
        UsageError: a range or loader that cannot be used.
    """
    if isinstance(train_loader, Iterator):
        raise UsageError("train_loader can be read only once: pass a DataLoader or a list")
    device = next((param.device for param in model.parameters()), torch.device("cpu"))

    def ramp(lrs: Iterator[float]) -> list[tuple[float, float]]:
        with preserved(model, optimizer, train_loader):
            if hasattr(optimizer, "schedule"):
                optimizer.schedule = None
            set_lr = _lr_setter(optimizer)
            batches = _endless(train_loader)
            model.train()

            def step(lr: float) -> float:
                set_lr(lr)
                optimizer.zero_grad(set_to_none=True)
                value = loss(model, to_device(next(batches), device))
                value.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                return float(value.item())

            return climb(step, lrs)

    return search(ramp, low, high, steps)


def lr_range(job: Job, progress: Progress = lambda step, steps: None) -> LrCurve:
    """Range test of a job's configuration: about `job.max_steps` batches on fresh models.

    `progress(step, steps)` is called after every batch; what it raises ends the test.
    """
    steps = job.max_steps or STEPS
    flat = job.configuration.model_copy(update={"schedule": "constant", "schedule_args": {}})
    constant = job.model_copy(update={"configuration": flat, "max_steps": steps})
    done = 0

    def ramp(lrs: Iterator[float]) -> list[tuple[float, float]]:
        work = Workload.create(constant)
        set_lr = _lr_setter(work.optimizer)
        batches = work.batches()

        def step(lr: float) -> float:
            nonlocal done
            set_lr(lr)
            value = work.step(next(batches))
            done += 1
            progress(min(done, steps), steps)
            return value

        return climb(step, lrs)

    return search(ramp, LOW, HIGH, steps)


def search(ramp: Ramp, low: float, high: float, steps: int) -> LrCurve:
    """Coarse ramp, fine ramp, suggestion; starts lower when a ramp starts where training moves.

    Fewer than 36 steps are too few to see anything and become 36. Raises UsageError for an empty
    range.
    """
    if not 0 < low < high:
        raise UsageError(f"low = {low}, high = {high}: expected 0 < low < high")
    steps = max(steps, 3 * MIN_POINTS)
    coarse_steps = round(steps * COARSE_SHARE)
    coarse = _from_low_enough(ramp, low, high, coarse_steps)
    if explosion([loss for _, loss in coarse]) == 0:
        return suggest(coarse)
    top = _top(coarse)
    bottom, above = top / 10**DECADES_BELOW, top * 10**DECADES_ABOVE
    return suggest(_from_low_enough(ramp, bottom, above, steps - coarse_steps))


def _from_low_enough(ramp: Ramp, low: float, high: float, steps: int) -> list[tuple[float, float]]:
    points = ramp(ladder(low, high, steps))
    for _ in range(RESTARTS):
        if not starts_too_high(points):
            break
        low *= LOWER
        points = ramp(ladder(low, high, steps))
    return points


def _top(points: list[tuple[float, float]]) -> float:
    """Where the coarse ramp explodes; without an explosion a decade above its lowest loss."""
    end = explosion([loss for _, loss in points])
    if end is not None:
        return points[end][0]
    curve = shape(points)
    return 10 * float(curve.lrs[curve.lowest])


def ladder(low: float, high: float, steps: int) -> Iterator[float]:
    """Learning rates evenly on the log scale, `steps` from low to high, and on up to CEILING."""
    ratio = (high / low) ** (1 / (steps - 1))
    index = 0
    while (lr := low * ratio**index) <= max(high, CEILING) * (1 + 1e-9):
        yield lr
        index += 1


def climb(step: Step, lrs: Iterator[float]) -> list[tuple[float, float]]:
    """Take one step at each learning rate until the loss has exploded."""
    points: list[tuple[float, float]] = []
    for lr in lrs:
        points.append((lr, step(lr)))
        if explosion([loss for _, loss in points]) is not None:
            break
    return points


def _lr_setter(optimizer: torch.optim.Optimizer) -> Callable[[float], None]:
    """Sets the first group's learning rate, and the others' so that their ratios stay."""
    base = float(optimizer.param_groups[0]["lr"]) or 1.0
    ratios = [float(group["lr"]) / base for group in optimizer.param_groups]

    def set_lr(lr: float) -> None:
        for group, ratio in zip(optimizer.param_groups, ratios, strict=True):
            group["lr"] = lr * ratio

    return set_lr


def _endless(loader: Iterable[Any]) -> Iterator[Any]:
    while True:
        empty = True
        for batch in loader:
            empty = False
            yield batch
        if empty:
            raise UsageError("train_loader is empty")
