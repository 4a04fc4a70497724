"""Follows a running study into MLflow from a thread of its own; a study never waits for it."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tuner.paths import mask_password
from tuner.records import Evaluation, LrCurve, Record, Study, Trial
from tuner.store.mlflow import RunWriter, artifact_location, connect, problem
from tuner.store.projection import arm_key, arm_view, study_view, trial_view

logger = logging.getLogger("tuner.mlflow")

SILENCE_SECONDS = 30.0  # after a failure, before MLflow is tried again

Task = Callable[[RunWriter], Any]


class SinkReport(Record):
    """How the sink ended. `message` is one line for the user, empty when all went well."""

    failed: bool
    message: str
    pending: int  # updates that were not written; `tuner mlflow sync` writes them


class MlflowSink:
    """Writes what happens in one study to MLflow.

    No method blocks or raises. When MLflow fails, one warning is logged, what follows within
    `SILENCE_SECONDS` is left out without trying, and `close` says how much is missing.

    Args:
        uri: a tracking URI, `http://...` or `sqlite:///...`.
        artifact_root: folder or URI of a new experiment's files; None = beside a local database,
            or as the tracking server says.
    """

    def __init__(self, uri: str, artifact_root: str | None = None) -> None:
        self._uri = uri
        self._artifact_root = artifact_root
        self._study: Study | None = None
        self._writer: RunWriter | None = None
        self._tasks: queue.SimpleQueue[Task | None] = queue.SimpleQueue()
        self._submitted = 0
        self._written = 0
        self._problem = ""
        self._silent_until = 0.0
        self._thread = threading.Thread(target=self._serve, name="tuner-mlflow", daemon=True)
        self._thread.start()

    def study_started(self, study: Study) -> None:
        """Begin or continue the study's run; comes before all other calls."""
        self._study = study
        self._submit(lambda writer: writer.write(study_view(study)))

    def trial_started(self, trial: Trial) -> None:
        """Show a trial as running."""
        study = self._study
        assert study is not None, "study_started comes first"
        self._submit(lambda writer: _write_trial(writer, study, trial))

    def trial_finished(
        self,
        study: Study,
        trial: Trial,
        evaluations: Sequence[Evaluation] = (),
        lrs: Sequence[float] = (),
        lr_curve: LrCurve | None = None,
    ) -> None:
        """Write all that a trial measured."""
        self._submit(lambda writer: _write_trial(writer, study, trial, evaluations, lrs, lr_curve))

    def study_finished(self, study: Study, arms: Sequence[Mapping[str, Any]] = ()) -> None:
        """Write the answer and the comparison (`arms` of `tuner study compare --json`)."""

        def task(writer: RunWriter) -> None:
            top = study_view(study)
            writer.write(top)
            for arm in arms:
                view = arm_view(study, arm["name"], arm["optimizer"], arm["schedule"], arm)
                writer.write(view)
            writer.close_arms(top)

        self._submit(task)

    def log_report(self, study: Study, path: Path) -> None:
        """Attach a file to the study's run."""

        def task(writer: RunWriter) -> None:
            if not writer.has("study"):
                writer.write(study_view(study))
            writer.attach("study", path)

        self._submit(task)

    def close(self, timeout: float = 10.0) -> SinkReport:
        """Write what is queued, for at most `timeout` seconds, and report."""
        self._tasks.put(None)
        self._thread.join(timeout)
        pending = self._submitted - self._written
        reason = self._problem or f"MLflow at {mask_password(self._uri)} is slow"
        message = f"{reason}; {pending} updates are missing there" if pending else ""
        return SinkReport(failed=pending > 0, message=message, pending=pending)

    def _submit(self, task: Task) -> None:
        self._submitted += 1
        self._tasks.put(task)

    def _serve(self) -> None:
        while (task := self._tasks.get()) is not None:
            if time.monotonic() < self._silent_until:
                continue
            try:
                task(self._connected_writer())
                self._written += 1
            except Exception as error:  # whatever MLflow does, the study goes on
                self._give_up_for_now(error)

    def _connected_writer(self) -> RunWriter:
        if self._writer is None:
            assert self._study is not None, "study_started comes first"
            location = artifact_location(self._uri, self._artifact_root)
            self._writer = RunWriter(connect(self._uri), self._study, location)
        return self._writer

    def _give_up_for_now(self, error: Exception) -> None:
        self._silent_until = time.monotonic() + SILENCE_SECONDS
        self._writer = None  # what it knows of the runs may no longer hold
        if not self._problem:
            self._problem = problem(self._uri, error)
            logger.warning("%s; the study goes on without it", self._problem)


def _write_trial(
    writer: RunWriter,
    study: Study,
    trial: Trial,
    evaluations: Sequence[Evaluation] = (),
    lrs: Sequence[float] = (),
    lr_curve: LrCurve | None = None,
) -> None:
    if not writer.has("study"):
        writer.write(study_view(study))
    if not writer.has(arm_key(trial.arm)):
        configuration = trial.configuration
        writer.write(arm_view(study, trial.arm, configuration.optimizer, configuration.schedule))
    writer.write(trial_view(study, trial, evaluations, lrs, lr_curve))
