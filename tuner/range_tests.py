"""LR range tests on their own, without a study file; stored and shown like a small study."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from socket import gethostname
from typing import Any, Literal

import optimizers
import optimizers.wrappers
from tuner.errors import TaskError, TunerError, UsageError
from tuner.executors.base import Executor, Finished
from tuner.records import Configuration, Failure, Job, LrCurve, Outcome, Study, Trial


@dataclass(frozen=True)
class Request:
    """What to test: one range test for each optimizer.

    Attributes:
        task: `package.module:function`, imported from `search_path` first.
        batch_size: in examples; the suggestion holds for this batch size.
        steps: what a test may cost in optimizer steps; None for 1.48 runs, at most 2000 steps.
        run_steps: length of the run that the answer is for; None for 10 epochs.
        quick: one classic ramp instead of short runs.
        on: "train" or "val": whose held-out loss judges the short runs.
        axis: what is moved (`LrCurve.axis`); None for each optimizer's own.
        schedule: what the short runs follow, as the run will.
    """

    task: str
    optimizers: tuple[str, ...]
    batch_size: int
    steps: int | None = None
    run_steps: int | None = None
    quick: bool = False
    on: Literal["train", "val"] = "train"
    axis: str | None = None
    schedule: str = "warmup_cosine"
    seed: int = 0
    search_path: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in self.optimizers:
            if name in optimizers.wrappers.WRAPPERS:
                continue
            try:
                optimizers.get_rule(name)
            except ValueError as error:
                raise UsageError(str(error)) from None


@dataclass(frozen=True)
class Result:
    """One finished test: the row that is stored, and its curve."""

    trial: Trial
    curve: LrCurve


def study(request: Request, provenance: dict[str, Any]) -> Study:
    """The study that the tests are stored under; its name says task, time and process."""
    now = datetime.now(UTC)
    task = request.task.replace(":", ".")[-60:].lstrip(".")
    return Study(
        name=f"lr-find-{task}-{now:%Y%m%d-%H%M%S}-{os.getpid()}",
        state="completed",
        spec={
            "kind": "lr-find",
            "task": request.task,
            "optimizers": list(request.optimizers),
            "batch_size": request.batch_size,
            "steps": request.steps,
            "run_steps": request.run_steps,
            "quick": request.quick,
            "on": request.on,
            "axis": request.axis,
            "schedule": request.schedule,
            "seed": request.seed,
        },
        created_at=now,
        updated_at=now,
        provenance=provenance,
    )


def run(
    request: Request,
    executor: Executor,
    moved: Callable[[str, int, int], None] = lambda name, step, steps: None,
) -> Iterator[Result]:
    """Run the tests on an executor's slots; yields each as it finishes.

    `moved(optimizer, step, steps)` is called a few times a second.

    Raises:
        TaskError: the user's code raised.
        UsageError: there is no such task.
        TunerError: a test failed for another reason.
    """
    waiting = list(enumerate(request.optimizers))
    running: dict[str, Trial] = {}
    while waiting or running:
        while waiting and executor.free_slots():
            number, name = waiting.pop(0)
            trial = _trial(request, number, name)
            running[str(number)] = trial
            executor.submit(_job(request, trial))
        for event in executor.poll(timeout=0.5):
            if isinstance(event, Finished):
                yield _result(running.pop(event.outcome.job_id), event.outcome)
            else:
                moved(running[event.job_id].arm, event.step, event.total_steps)


def in_order(results: Sequence[Result]) -> list[Result]:
    """Results by trial number, which is the order of the request."""
    return sorted(results, key=lambda result: result.trial.number)


def _trial(request: Request, number: int, optimizer: str) -> Trial:
    return Trial(
        number=number,
        arm=optimizer,
        stage="lr-range",
        seed=request.seed,
        params={"batch_size": request.batch_size},
        configuration=_configuration(request, optimizer),
        host=gethostname(),
        started_at=datetime.now(UTC),
    )


def _configuration(request: Request, name: str) -> Configuration:
    """A rule alone, or a wrapper around SGD; a schedule-free rule keeps its learning rate."""
    schedule = request.schedule
    if name in optimizers.wrappers.WRAPPERS:
        return Configuration(
            optimizer="sgd", wrapper=name, schedule=schedule, batch_size=request.batch_size
        )
    if optimizers.get_rule(name).points is not None:
        schedule = "constant"
    return Configuration(optimizer=name, schedule=schedule, batch_size=request.batch_size)


def _job(request: Request, trial: Trial) -> Job:
    return Job(
        id=str(trial.number),
        kind="lr_range",
        task=request.task,
        search_path=request.search_path,
        configuration=trial.configuration,
        seed=trial.seed,
        max_steps=request.run_steps,
        range_steps=request.steps,
        range_method="quick" if request.quick else "forks",
        range_axis=request.axis,
        range_on=request.on,
    )


def _result(trial: Trial, outcome: Outcome) -> Result:
    if outcome.lr_curve is None:
        raise _error(trial.arm, outcome.failure)
    done = trial.model_copy(
        update={
            "state": "completed",
            "value": outcome.value,
            "steps": round(outcome.lr_curve.cost),
            "wall_seconds": outcome.wall_seconds,
            "device": outcome.device,
            "finished_at": datetime.now(UTC),
            "info": outcome.info,
        }
    )
    return Result(done, outcome.lr_curve)


def _error(arm: str, failure: Failure | None) -> TunerError:
    if failure is None:
        return TunerError(f"{arm}: the range test ended without a curve")
    if failure.kind == "usage_error":
        return UsageError(failure.message)
    if failure.kind == "user_error":
        return TaskError(failure.message, failure.traceback)
    return TunerError(f"{arm}: {failure.kind}: {failure.message}")
