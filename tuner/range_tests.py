"""LR range tests on their own, without a study file; stored and shown like a small study."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from socket import gethostname
from typing import Any

import optimizers
from tuner.errors import TaskError, TunerError, UsageError
from tuner.executors.base import Executor, Finished
from tuner.records import Configuration, Failure, Job, LrCurve, Outcome, Study, Trial


@dataclass(frozen=True)
class Request:
    """What to test: one range test for each optimizer.

    Attributes:
        task: `package.module:function`, imported from `search_path` first.
        batch_size: in examples; the suggestion holds for this batch size.
        steps: batches of a test, unless it has to extend its range.
    """

    task: str
    optimizers: tuple[str, ...]
    batch_size: int
    steps: int
    seed: int = 0
    search_path: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in self.optimizers:
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
            "seed": request.seed,
        },
        created_at=now,
        updated_at=now,
        provenance=provenance,
    )


def run(request: Request, executor: Executor) -> Iterator[Result]:
    """Run the tests on an executor's slots; yields each as it finishes.

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
        configuration=Configuration(optimizer=optimizer, batch_size=request.batch_size),
        host=gethostname(),
        started_at=datetime.now(UTC),
    )


def _job(request: Request, trial: Trial) -> Job:
    return Job(
        id=str(trial.number),
        kind="lr_range",
        task=request.task,
        search_path=request.search_path,
        configuration=trial.configuration,
        seed=trial.seed,
        max_steps=request.steps,
    )


def _result(trial: Trial, outcome: Outcome) -> Result:
    if outcome.lr_curve is None:
        raise _error(trial.arm, outcome.failure)
    done = trial.model_copy(
        update={
            "state": "completed",
            "value": outcome.value,
            "steps": len(outcome.lr_curve.points),
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
