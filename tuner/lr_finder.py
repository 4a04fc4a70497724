"""Which learning rate to train with, how sure that is, and where training explodes.

`find_lr` works on plain PyTorch objects, `lr_range` on a task of the tuner. Both put everything
back, bit by bit. The method is in `tuner.lr_search`, its reasons in docs/decisions.
"""

from __future__ import annotations

import base64
import contextlib
import html
import io
import logging
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from optimizers.schedules import Schedule, create
from tuner.errors import UsageError
from tuner.lr_arguments import check, loss_of
from tuner.lr_axis import axis_of
from tuner.lr_batches import Batches, Split, length_of, rows_of
from tuner.lr_ramp import HIGH, LOW, STEPS, Points, climb, quick
from tuner.lr_rigs import (
    MOST_LOOKS,
    LoaderRig,
    Rig,
    WorkloadRig,
    refresh_of,
    schedule_of,
)
from tuner.lr_search import Plan, Progress, Search
from tuner.records import Job, LrCurve
from tuner.snapshot import preserved
from tuner.workload import Workload

# The run that a suggestion is for, when nobody says: so many epochs, between these bounds.
EPOCHS, FEWEST, MOST = 10, 300, 3000
QUICK_CAVEAT = (
    "a single ramp, which is cheap and often half a decade off for a whole run; "
    "without quick there is an interval, too"
)


class LrResult(LrCurve):
    """The answer of `find_lr`: an `LrCurve` that draws itself."""

    def plot(self, ax: Any = None) -> Any:
        """Draw ramp, short runs, suggestion, interval and divergence; returns matplotlib axes."""
        from tuner.compare.plots import lr_axes

        return lr_axes({self.axis: self}, ax)

    def __repr__(self) -> str:
        return f"<{self.headline}; {self.reason}>"

    __str__ = __repr__

    def _repr_html_(self) -> str:
        """What a notebook shows: the answer, its reason and the picture."""
        data = base64.b64encode(self._repr_png_()).decode()
        return (
            f"<b>{html.escape(self.headline)}</b><br>{html.escape(self.reason)}<br>"
            f'<img alt="learning-rate range test" src="data:image/png;base64,{data}">'
        )

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        self.plot().figure.savefig(buffer, format="png", dpi=100)
        return buffer.getvalue()


def find_lr(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    train_loader: Iterable[Any],
    loss: Callable[..., Tensor],
    *,
    total_steps: int | None = None,
    steps: int | None = None,
    val_loader: Iterable[Any] | None = None,
    schedule: Schedule | str | None = None,
    accumulation_steps: int = 1,
    scaler: Any = None,
    amp_dtype: torch.dtype | None = None,
    max_grad_norm: float | None = None,
    axis: str | None = None,
    quick: bool = False,
    low: float = LOW,
    high: float = HIGH,
    progress: Progress = lambda step, steps: None,
) -> LrResult:
    """The peak learning rate for a run of `total_steps` optimizer steps, from short runs.

        result = find_lr(model, optimizer, train_loader, loss, total_steps=10_000)
        result.suggested_lr, result.plot()

    Model, optimizer, loaders, scaler and all random state are afterwards as they were, also after
    an exception or Ctrl-C. Learning rates of parameter groups keep their ratios; the suggestion is
    the first group's. Schedules, inside the optimizer or around it, do not move.

    Args:
        loss: `loss(model, batch)`, the mean loss of a batch; or a criterion such as
            `nn.CrossEntropyLoss()` for batches of (inputs, targets).
        total_steps: length of the run to come; by default the optimizer's own, else 10 epochs.
        steps: what the test may cost, in optimizer steps; by default 1.48 runs, at most 2000.
        val_loader: judges the short runs in place of held-out training batches.
        schedule: of the run to come; by default the optimizer's own, else warm-up and cosine.
        accumulation_steps: batches of one optimizer step.
        scaler: a `GradScaler`, copied for every short run.
        amp_dtype: train under autocast with this type.
        max_grad_norm: clip the global gradient norm, as the run will.
        axis: "lr", "adamw_lr" for muon's second rate, "d_coef" for Prodigy (its default).
        quick: one classic ramp, without interval.
        low, high: learning rates that the ramp begins with; both ends move when too narrow.
        progress: called with (steps done, steps in all) after every step.

    Raises:
        UsageError: an argument that cannot be used.
    """
    loaders = {"train_loader": train_loader}
    loaders |= {} if val_loader is None else {"val_loader": val_loader}
    counts = {"accumulation_steps": accumulation_steps, "total_steps": total_steps, "steps": steps}
    check(model, optimizer, loaders, counts)
    if isinstance(schedule, str):
        try:
            schedule = create(schedule)
        except ValueError as error:
            raise UsageError(str(error)) from None
    run_steps = total_steps or _own_length(optimizer) or _assumed(train_loader, accumulation_steps)
    plan = Plan.create(run_steps, steps, refresh_of(optimizer))
    moving = axis_of(optimizer, axis)
    followed, start = schedule_of(optimizer, schedule), moving.start
    needed = MOST_LOOKS + accumulation_steps * plan.batches
    with (
        quiet(),
        preserved(model, optimizer, train_loader, val_loader, scaler) as restore,
        torch.enable_grad(),
    ):
        train = Batches(train_loader, "train_loader", needed)
        kept = train if val_loader is None else Batches(val_loader, "val_loader", MOST_LOOKS)
        rig = LoaderRig(
            model,
            optimizer,
            moving,
            restore,
            train=train,
            held_out=kept,
            split=Split(0)
            if val_loader is not None
            else Split.create(train.epoch, MOST_LOOKS, needed, rows_of(train[0])),
            loss=loss_of(loss),
            accumulation=accumulation_steps,
            scaler=scaler,
            amp_dtype=amp_dtype,
            max_grad_norm=max_grad_norm,
        )
        if quick:
            curve = _quick(rig, steps or STEPS, low, high, moving.name, progress)
        else:
            curve = Search(rig, plan, followed, progress, low, high, moving.name, start).run()
    return LrResult(**dict(curve))


def lr_range(job: Job, progress: Progress = lambda step, steps: None) -> LrCurve:
    """Range test of a job's configuration for a run of the job's length, on one fresh model.

    `progress(step, steps)` is called after every step; what it raises ends the test.
    """
    work = Workload.create(_with_length(job))
    moving = axis_of(work.optimizer, job.range_axis)
    followed, start = schedule_of(work.optimizer), moving.start
    run_steps = work.steps
    plan = Plan.create(run_steps, job.range_steps, refresh_of(work.optimizer))
    with quiet(), preserved(work.model, work.optimizer) as restore:
        needed = MOST_LOOKS + plan.batches
        epoch = max(1, work.train_size // work.batch_size)
        split = Split.create(epoch, MOST_LOOKS, needed, min(work.batch_size, work.train_size))
        rig = WorkloadRig(work, moving, restore, split, job.range_on == "val")
        if job.range_method == "quick":
            return _quick(rig, job.range_steps or STEPS, LOW, HIGH, moving.name, progress)
        return Search(rig, plan, followed, progress, axis=moving.name, start=start).run()


def _quick(rig: Rig, steps: int, low: float, high: float, axis: str, progress: Progress) -> LrCurve:
    def ramp(lrs: Iterator[float]) -> Points:
        rig.reset()
        start = rig.steps

        def step(lr: float) -> float:
            loss = rig.step(rig.steps - start, lr)
            progress(min(rig.steps, steps), steps)
            return loss

        return climb(step, lrs)

    curve = quick(ramp, low, high, steps)
    extra = {"axis": axis, "cost": float(rig.steps), "method": "quick"}
    if curve.suggested_lr is not None:
        extra["reason"] = f"{curve.reason}; {QUICK_CAVEAT}"
    return curve.model_copy(update=extra)


def _with_length(job: Job) -> Job:
    limits = (job.max_steps, job.max_epochs, job.max_examples)
    if any(limit is not None for limit in limits):
        return job
    probe = Workload.create(job.model_copy(update={"max_steps": 1}))
    epoch = max(1, probe.train_size // probe.batch_size)
    return job.model_copy(update={"max_steps": _bounded(EPOCHS * epoch)})


def _own_length(optimizer: torch.optim.Optimizer) -> int | None:
    length = getattr(optimizer, "total_steps", None)
    return length if isinstance(length, int) else None


def _assumed(loader: Iterable[Any], accumulation: int) -> int:
    length = length_of(loader)
    return MOST if length is None else _bounded(EPOCHS * length // accumulation)


def _bounded(steps: int) -> int:
    return min(max(steps, FEWEST), MOST)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Steps that are skipped because training explodes are what a range test looks for."""
    logger = logging.getLogger("optimizers")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
