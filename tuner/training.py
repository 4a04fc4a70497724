"""A `Job` in, an `Outcome` out: the training loop, with its ends told apart.

Everything comes from the job: the same job on the same device gives bit-equal numbers, also when it
was interrupted and went on from its checkpoint. No exception leaves `run`.
"""

from __future__ import annotations

import math
import resource
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from tuner import checkpoint
from tuner.check import check
from tuner.errors import TaskError, UsageError
from tuner.layers import watch
from tuner.records import Evaluation, Failure, Job, LrCurve, Outcome
from tuner.seeding import deterministic, restore_rng, rng_state
from tuner.task import is_out_of_memory, one_line
from tuner.workload import (
    Workload,
    current_device,
    device_name,
    environment,
    require_metric,
)

Report = Callable[[int, int, Evaluation | None], bool]

PROGRESS_SECONDS = 0.2
# Skipping a step with a non-finite gradient survives an accident; many in a row are no accident.
MAX_SKIPPED_IN_A_ROW = 10
# What a checkpoint keeps of a trace besides its evaluations.
TRACED = ("step", "seconds", "skipped_in_a_row", "lrs", "losses", "grad_norms", "layers")


@dataclass
class Trace:
    """What is known about a run at any moment; the part of a checkpoint that is not tensors."""

    step: int = 0
    seconds: float = 0.0
    skipped_in_a_row: int = 0
    lrs: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)  # of the steps since the last evaluation
    grad_norms: list[float] = field(default_factory=list)
    layers: list[dict[str, Any]] = field(default_factory=list)  # a few looks at them
    evaluations: list[Evaluation] = field(default_factory=list)
    lr_curve: LrCurve | None = None
    value: float | None = None
    info: dict[str, Any] = field(default_factory=dict)

    def note(self, text: str) -> None:
        """Add a remark for people to the outcome, once."""
        notes = self.info.setdefault("notes", [])
        if text not in notes:
            notes.append(text)


class _Stopped(Exception):
    """The run ends before its last step."""

    def __init__(self, state: Any, message: str = "") -> None:
        self.state = state
        self.failure = Failure(kind="diverged", message=message) if state == "diverged" else None


def run(job: Job, report: Report) -> Outcome:
    """Run a job to its end in this process.

    `report(step, total_steps, evaluation)` is called a few times a second and at every evaluation;
    when it returns False the run ends in state "cancelled", its checkpoint kept.
    """
    started = time.perf_counter()
    trace = Trace()
    state: Any = "completed"
    failure = None
    device = current_device()
    try:
        with deterministic(device.type == "cpu"):
            _KINDS[job.kind](job, trace, report)
    except _Stopped as stopped:
        state, failure = stopped.state, stopped.failure
    except Exception as error:
        state, failure = "failed", _classify(error)
    if job.checkpoint is not None and state != "cancelled":
        checkpoint.remove(Path(job.checkpoint))
    return Outcome(
        job_id=job.id,
        state=state,
        value=trace.value if state in ("completed", "pruned") else None,
        evaluations=trace.evaluations,
        lrs=trace.lrs,
        lr_curve=trace.lr_curve,
        failure=failure,
        wall_seconds=time.perf_counter() - started,
        device=device_name(device),
        info=trace.info | {"environment": environment(), "peak_memory_bytes": _peak(device)},
    )


def _classify(error: Exception) -> Failure:
    if is_out_of_memory(error):
        return Failure(kind="out_of_memory", message=one_line(error))
    if isinstance(error, TaskError):
        return Failure(kind="user_error", message=str(error), traceback=error.traceback)
    if isinstance(error, UsageError):
        return Failure(kind="usage_error", message=str(error))
    stack = "".join(traceback.format_exception(error))
    return Failure(kind="internal", message=one_line(error), traceback=stack)


def _peak(device: torch.device) -> int:
    """Most memory in use so far: of the device for a GPU, else of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _train(job: Job, trace: Trace, report: Report) -> None:
    work = _resumed(job, trace)
    trace.info |= work.description
    if work.batch_size < job.configuration.batch_size:
        asked = job.configuration.batch_size
        trace.note(f"batch size {asked} is larger than the data set: {work.batch_size} used")
    trace.info["layers"] = trace.layers
    watch(work.model, work.optimizer, work.steps, trace.step, trace.layers)
    evaluate_at = evaluation_steps(work.steps, job.evaluations)
    clock = _Clock(trace)
    saved = reported = time.monotonic()
    for indices in work.batches(trace.step):
        if trace.step >= work.steps:
            break
        _step(work, job, trace, indices)
        if trace.step in evaluate_at:
            with clock.paused():
                evaluation = _evaluate(work, job, trace)
            reported = time.monotonic()
            _continue_if(report(trace.step, work.steps, evaluation), work, job, trace)
            _prune(job, trace)
        now = time.monotonic()
        if now - reported >= PROGRESS_SECONDS:
            reported = now
            _continue_if(report(trace.step, work.steps, None), work, job, trace)
        if job.checkpoint is not None and now - saved >= job.checkpoint_seconds:
            with clock.paused():
                _save(work, job, trace)
            saved = time.monotonic()


def evaluation_steps(steps: int, evaluations: int) -> set[int]:
    """Spread evaluations evenly over a run; at least one, and the last at the final step."""
    count = min(max(evaluations, 1), steps)
    return {round(steps * (index + 1) / count) for index in range(count)}


def _step(work: Workload, job: Job, trace: Trace, indices: torch.Tensor) -> None:
    optimizer = work.optimizer
    skipped = optimizer.skipped_steps
    loss = work.step(indices)
    trace.step += 1
    trace.lrs.append(optimizer.current_lr)
    trace.losses.append(loss)
    norm = optimizer.last_grad_norm
    if norm is not None and math.isfinite(norm):  # a skipped step has no norm to speak of
        trace.grad_norms.append(norm)
    trace.skipped_in_a_row = trace.skipped_in_a_row + 1 if optimizer.skipped_steps > skipped else 0
    trace.info["skipped_steps"] = optimizer.skipped_steps
    if not math.isfinite(loss):
        _require_sound("training", work, job, lambda fresh: fresh.measure(indices))
        raise _diverged(f"training loss became {loss}", trace)
    if trace.skipped_in_a_row >= MAX_SKIPPED_IN_A_ROW:
        raise _diverged(f"{trace.skipped_in_a_row} steps in a row had non-finite gradients", trace)


def _require_sound(
    part: str, work: Workload, job: Job, measure: Callable[[Workload], float]
) -> None:
    """Raise TaskError when the loss is not finite before the first step either.

    Then no learning rate would help, and the run says nothing about its optimizer.
    """
    work.optimizer.zero_grad(set_to_none=True)  # what they held has room for a second model
    value = measure(Workload.create(job))
    if not math.isfinite(value):
        raise TaskError(
            f"a {part} loss is {value} with the initial weights, too: the fault is in the data or"
            " the loss, not in the learning rate"
        )


def _diverged(what: str, trace: Trace) -> _Stopped:
    return _Stopped("diverged", f"{what} at step {trace.step}, lr {trace.lrs[-1]:.3g}")


def _evaluate(work: Workload, job: Job, trace: Trace) -> Evaluation:
    metrics = work.evaluate()
    require_metric(job.metric, metrics)
    if not math.isfinite(metrics["loss"]):
        _require_sound("validation", work, job, lambda fresh: fresh.evaluate()["loss"])
    for name in ("loss", job.metric):
        if not math.isfinite(metrics[name]):
            raise _diverged(f"validation {name} became {metrics[name]}", trace)
    evaluation = Evaluation(
        step=trace.step,
        examples=trace.step * work.batch_size,
        seconds=trace.seconds,
        lr=trace.lrs[-1],
        train_loss=fmean(trace.losses),
        grad_norm=fmean(trace.grad_norms) if trace.grad_norms else 0.0,
        metrics=metrics,
    )
    work.tell_schedule(metrics["loss"])
    trace.evaluations.append(evaluation)
    trace.value = metrics[job.metric]
    trace.losses, trace.grad_norms = [], []
    return evaluation


def _prune(job: Job, trace: Trace) -> None:
    """Apply the stop rules of the latest evaluation."""
    sign = 1.0 if job.direction == "minimize" else -1.0
    value = trace.evaluations[-1].metrics[job.metric]
    for rule in job.stop_rules:
        if rule.evaluation == len(trace.evaluations) and sign * value > sign * rule.threshold:
            raise _Stopped("pruned")


def _continue_if(wanted: bool, work: Workload, job: Job, trace: Trace) -> None:
    if not wanted:
        if job.checkpoint is not None and trace.step < work.steps:
            _save(work, job, trace)
        raise _Stopped("cancelled")


class _Clock:
    """Adds training time to `trace.seconds`; validation and checkpoints do not count."""

    def __init__(self, trace: Trace) -> None:
        self._trace = trace
        self._since = time.perf_counter()

    def paused(self) -> _Clock:
        return self

    def __enter__(self) -> None:
        self._trace.seconds += time.perf_counter() - self._since

    def __exit__(self, *_: object) -> None:
        self._since = time.perf_counter()


def _save(work: Workload, job: Job, trace: Trace) -> None:
    state = {
        "model": work.model.state_dict(),
        "buffers": dict(work.model.named_buffers()),  # those outside the state dict as well
        "optimizer": work.optimizer.state_dict(),
        "skipped_steps": work.optimizer.skipped_steps,
        "rng": rng_state(),
        "trace": {name: getattr(trace, name) for name in TRACED},
        "evaluations": [evaluation.model_dump() for evaluation in trace.evaluations],
    }
    problem = checkpoint.save(Path(job.checkpoint or ""), job, state)
    if problem is not None:
        trace.note(problem)


def _resumed(job: Job, trace: Trace) -> Workload:
    """A fresh workload, moved to where the job's checkpoint left off if there is a usable one."""
    work = Workload.create(job)
    if job.checkpoint is None:
        return work
    state, problem = checkpoint.load(Path(job.checkpoint), job)
    if problem is not None:
        trace.note(problem)
    if state is None:
        return work
    try:
        work.model.load_state_dict(state["model"])
        for name, buffer in work.model.named_buffers():
            buffer.copy_(state["buffers"][name])
        work.optimizer.load_state_dict(state["optimizer"])
        evaluations = [Evaluation(**values) for values in state["evaluations"]]
        for name, value in state["trace"].items():
            setattr(trace, name, value)
    except Exception as error:  # the task's code changed since: its model has other parameters
        trace.note(f"checkpoint ignored: it does not fit the model ({one_line(error)})")
        return Workload.create(job)
    work.optimizer.skipped_steps = state["skipped_steps"]
    trace.evaluations = evaluations
    trace.value = evaluations[-1].metrics[job.metric] if evaluations else None
    trace.info["resumed_at"] = trace.step
    restore_rng(state["rng"])
    return work


def _check(job: Job, trace: Trace, report: Report) -> None:
    trace.info |= check(job)


def _lr_range(job: Job, trace: Trace, report: Report) -> None:
    from tuner.lr_finder import lr_range  # a quarter of a second to import, and few jobs need it

    def progress(step: int, steps: int) -> None:
        if not report(step, steps, None):
            raise _Stopped("cancelled")

    trace.lr_curve = lr_range(job, progress)
    trace.value = trace.lr_curve.suggested_lr


_KINDS: dict[str, Callable[[Job, Trace, Report], None]] = {
    "train": _train,
    "check": _check,
    "lr_range": _lr_range,
}
