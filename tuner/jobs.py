"""From a planned trial to the job that a worker runs, and the check before a study starts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tuner.errors import TaskError, UsageError
from tuner.executors.base import Executor, Finished
from tuner.records import Job, Outcome, Trial
from tuner.spec import StudySpec
from tuner.stages import History, evaluations_of, next_trials


@dataclass(frozen=True)
class Places:
    """Where a study's task is imported from and its checkpoints lie."""

    search_path: tuple[str, ...]
    checkpoints: Path


def job_of(spec: StudySpec, trial: Trial, places: Places) -> Job:
    """What a worker has to know to run a trial."""
    budget, ranging = spec.budget, trial.stage == "lr-range"
    length: dict[str, Any] = (
        {"max_steps": budget.lr_range_steps} if ranging else scaled_length(spec, trial.length)
    )
    return Job(
        id=str(trial.number),
        kind="lr_range" if ranging else "train",
        task=spec.study.task,
        search_path=places.search_path,
        configuration=trial.configuration,
        seed=trial.seed,
        metric=spec.study.metric,
        direction=spec.study.direction,
        evaluations=evaluations_of(spec, trial.length),
        stop_rules=trial.stop_rules,
        micro_batch=trial.micro_batch,
        checkpoint=None if ranging else str(places.checkpoints / f"{trial.number}.pt"),
        checkpoint_seconds=spec.run.checkpoint_seconds,
        **length,
    )


def scaled_length(spec: StudySpec, length: float) -> dict[str, Any]:
    """The length of a run that is a part of a full trial, in the unit of the study file."""
    budget = spec.budget
    return {
        "max_steps": budget.max_steps and max(1, round(budget.max_steps * length)),
        "max_epochs": budget.max_epochs and budget.max_epochs * length,
        "max_examples": budget.max_examples and max(1, round(budget.max_examples * length)),
    }


def check_job(spec: StudySpec, places: Places) -> Job:
    """A job that builds the task and tries one batch, before anything is spent or created."""
    trial = next(next_trials(spec, History({}, {})))
    job = job_of(spec, trial, places)
    return job.model_copy(update={"id": "check", "kind": "check", "checkpoint": None})


def check_task(
    spec: StudySpec,
    executor: Executor,
    places: Places,
    should_stop: Callable[[], bool] = lambda: False,
) -> dict[str, Any]:
    """Run the check job; returns what it found out (metrics, sizes, seconds per step).

    Raises:
        KeyboardInterrupt: `should_stop` said so.
        TaskError: the user's code fails; carries their traceback.
        UsageError: the deciding metric is not among the task's.
    """
    job = check_job(spec, places)
    while True:
        outcome = run_job(executor, job, should_stop)
        size = job.micro_batch or job.configuration.batch_size
        if outcome.failure is None or outcome.failure.kind != "out_of_memory" or size == 1:
            return _checked(spec, outcome)
        job = job.model_copy(update={"micro_batch": half_batch(job)})


def run_job(
    executor: Executor, job: Job, should_stop: Callable[[], bool] = lambda: False
) -> Outcome:
    """Run one job on an idle executor and wait for its end.

    Raises:
        KeyboardInterrupt: `should_stop` said so.
    """
    executor.submit(job)
    while True:
        if should_stop():
            raise KeyboardInterrupt
        for event in executor.poll(0.5):
            if isinstance(event, Finished):
                return event.outcome


def half_batch(job: Job | Trial) -> int:
    """Half of what was tried at once, rounded up: the next size after running out of memory."""
    return ((job.micro_batch or job.configuration.batch_size) + 1) // 2


def _checked(spec: StudySpec, outcome: Outcome) -> dict[str, Any]:
    metrics = outcome.info.get("metrics", [])
    if metrics and spec.study.metric not in metrics:
        raise UsageError(
            f"study.metric = {spec.study.metric!r}: the task has no such metric;"
            f" allowed: {', '.join(metrics)}"
        )
    failure = outcome.failure
    if failure is not None and failure.kind == "usage_error":
        raise UsageError(failure.message)
    if failure is not None and failure.kind != "diverged":
        raise TaskError(f"task {spec.study.task!r}: {failure.message}", failure.traceback)
    return outcome.info
