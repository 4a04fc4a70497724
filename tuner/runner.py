"""The coordinator: stage -> propose -> submit -> store, for one study, as its only writer.

Everything it needs to go on lies in the store, so a study that was stopped, killed or moved to
another machine continues as if nothing had happened.
"""

from __future__ import annotations

import socket
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from typing import Any, Protocol

from tuner.errors import TaskError, TunerError
from tuner.executors.base import Event, Executor, Progress
from tuner.jobs import Places, half_batch, job_of
from tuner.lease import renew_lease, take_lease
from tuner.progress import Reporter
from tuner.records import Evaluation, LrCurve, Outcome, Stage, Study, StudyState, Trial
from tuner.spec import StudySpec
from tuner.stages import (
    OPEN,
    History,
    calibration,
    expected_sizes,
    next_trials,
    resolved,
    widenings,
)
from tuner.standing import known_limits, remaining
from tuner.store.base import Store

HEARTBEAT_SECONDS = 2.0
_POLL_SECONDS = 0.5
_PRUNED_STAGES = ("screen", "explore")
_BUGS = ("user_error", "usage_error", "internal")


class Sink(Protocol):
    """A projection of the store, such as MLflow; it never stops a study."""

    def study_started(self, study: Study) -> None:
        """A study starts or goes on."""

    def trial_started(self, trial: Trial) -> None:
        """A trial runs."""

    def trial_finished(
        self,
        study: Study,
        trial: Trial,
        evaluations: Sequence[Evaluation],
        lrs: Sequence[float],
        lr_curve: LrCurve | None,
    ) -> None:
        """A trial is in its final state."""


def metric_values(evaluations: Sequence[Evaluation], metric: str) -> list[float]:
    """The metric at every evaluation, in order."""
    return [e.metrics[metric] for e in evaluations if metric in e.metrics]


def load_history(store: Store, study: str, metric: str) -> History:
    """Replay the store; trials that nobody finished are interrupted.

    In a study that a bug has stopped, so are the trials that met the bug: it may be repaired.
    """
    repaired = _BUGS if store.get_study(study).state == "failed" else ()
    trials = {t.number: t for t in store.trials(study)}
    for number, trial in trials.items():
        if trial.state == "running" or (trial.failure and trial.failure.kind in repaired):
            again = {"state": "interrupted", "failure": None}
            trials[number] = trial.model_copy(update=again)
    evaluations = {
        n: metric_values(store.evaluations(study, n), metric)
        for n, t in trials.items()
        if t.stage in _PRUNED_STAGES and t.state == "completed"
    }
    return History(trials, store.lr_curves(study), evaluations)


@dataclass
class Coordinator:
    """Runs one study to its end, or until it is told to stop."""

    study: Study
    store: Store
    executor: Executor
    places: Places
    reporter: Reporter
    sinks: Sequence[Sink] = ()
    should_stop: Callable[[], bool] = lambda: False
    owner: str = ""

    spec: StudySpec = field(init=False)
    _trials: dict[int, Trial] = field(init=False, default_factory=dict)
    _curves: dict[int, LrCurve] = field(init=False, default_factory=dict)
    _values: dict[int, Sequence[float]] = field(init=False, default_factory=dict)
    _unsaved: dict[int, list[Evaluation]] = field(init=False, default_factory=dict)
    _kills: Counter[int] = field(init=False, default_factory=Counter)
    _bugs: Counter[str] = field(init=False, default_factory=Counter)
    _fits: dict[str, int] = field(init=False, default_factory=dict)  # largest micro-batch, by arm
    _stage: Stage | None = field(init=False, default=None)
    _heartbeat: float = field(init=False, default=0.0)
    _stop_requested: bool = field(init=False, default=False)

    def __post_init__(self) -> None:
        self.spec = StudySpec.of(self.study)

    def run(self) -> StudyState:
        """Run what is left of the study; "completed", or "stopped" when told to stop.

        Raises:
            TaskError: the user's code failed identically too often.
            TunerError: another coordinator is alive.
            BackendError: the store stayed out of reach; what it had is safe.
        """
        name = self.study.name
        self.owner = take_lease(self.store, name)
        try:
            self._load()
            self.store.request_stop(name, stop=False)
            self.store.set_study_state(name, "running")
            for sink in self.sinks:
                sink.study_started(self.study)
            state = self._loop()
        except BaseException as error:
            self._interrupt(best_effort=True)
            failed = isinstance(error, TaskError)
            self._best_effort(
                lambda: self.store.set_study_state(name, "failed" if failed else "stopped")
            )
            raise
        else:
            self._interrupt()
            self.store.set_study_state(name, state)
            return state
        finally:
            self._best_effort(lambda: self.store.release_lease(name, self.owner))

    def _load(self) -> None:
        history = load_history(self.store, self.study.name, self.spec.study.metric)
        self._trials = dict(history.trials)
        self._curves, self._values = dict(history.curves), dict(history.evaluations)
        finished = [t for t in self._trials.values() if t.state not in OPEN]
        self._fits = known_limits(list(self._trials.values()))
        self._bugs = Counter(
            t.failure.message for t in finished if t.failure and t.failure.kind in _BUGS
        )
        total = sum(expected_sizes(self.spec, history).values())
        self.reporter.study_started(self.executor.slots, total, finished)

    @property
    def history(self) -> History:
        """What the study has so far."""
        return History(self._trials, self._curves, self._values)

    def _running(self) -> list[Trial]:
        return [t for t in self._trials.values() if t.state == "running"]

    def _loop(self) -> StudyState:
        while True:
            self._beat()
            if self.should_stop() or self._stop_requested:
                return "stopped"
            self._fill_slots()
            if not self._running():
                return "completed"
            for event in self.executor.poll(_POLL_SECONDS):
                self._handle(event)

    def _beat(self) -> None:
        """Every few seconds: renew the lease, look for a request to stop, save evaluations."""
        if time.monotonic() - self._heartbeat < HEARTBEAT_SECONDS:
            return
        name = self.study.name
        held = renew_lease(self.store, name, self.owner)
        if held is not None:
            raise TunerError(f"study {name!r} was taken over by {held.host} process {held.pid}")
        self._stop_requested = self.store.get_study(name).stop_requested
        for number, evaluations in self._unsaved.items():
            if evaluations:
                self.store.add_evaluations(name, number, evaluations)
        self._unsaved.clear()
        self._heartbeat = time.monotonic()

    def _fill_slots(self) -> None:
        free = self.executor.free_slots()
        if free:
            for trial in next_trials(self.spec, self.history):
                self._start(trial)
                free -= 1
                if not free:
                    return

    def _enter(self, stage: Stage) -> None:
        """Say what is known now that could not be known before; keep the numbers it fixes."""
        if stage == self._stage:
            return
        before, self._stage = self._stage, stage
        history = self.history
        if stage not in ("calibrate", "defaults"):
            measured = before in ("calibrate", "defaults") or before is None
            if measured and history.first_runs():
                self._say(str(calibration(self.spec, history)))
            if self.spec.budget.is_open and stage != "lr-range":
                self._fix_budget(history)
        if stage == "confirm":
            for arm in self.spec.arms:
                for hit in widenings(self.spec, history, arm.name):
                    self._say(f"arm {arm.name}: {hit}")
        self._tell_plan()

    def _fix_budget(self, history: History) -> None:
        self.spec = resolved(self.spec, history)
        data = self.spec.model_dump(mode="json")
        self.study = self.study.model_copy(update={"spec": data})
        self.store.set_study_spec(self.study.name, data)
        budget = self.spec.budget
        trials = ", ".join(f"{arm} {count}" for arm, count in budget.arm_trials.items())
        self._say(
            f"budget: configurations to explore: {trials}; then {budget.confirm_seeds} seeds to"
            f" confirm and up to {budget.decide_seeds} to decide"
        )

    def _tell_plan(self) -> None:
        sizes = expected_sizes(self.spec, self.history)
        self.reporter.plan_changed(sum(sizes.values()), remaining(self.spec, self.history))

    def _start(self, trial: Trial, **changes: Any) -> None:
        self._enter(trial.stage)
        before = trial.attempts if trial.started_at is not None else 0
        fits = self._fits.get(trial.arm)
        if fits is not None and fits < trial.configuration.batch_size:
            changes = {"micro_batch": fits, **changes}
        trial = trial.model_copy(
            update={
                "state": "running",
                "attempts": before + 1,
                "started_at": trial.started_at or datetime.now(UTC),
                "host": socket.gethostname(),
                "provenance": self.study.provenance,
                **changes,
            }
        )
        self.store.save_trial(self.study.name, trial)
        self._trials[trial.number] = trial
        slot = self.executor.submit(job_of(self.spec, trial, self.places))
        self.reporter.trial_started(slot, trial)
        for sink in self.sinks:
            sink.trial_started(trial)

    def _handle(self, event: Event) -> None:
        if isinstance(event, Progress):
            self.reporter.trial_moved(event.slot, event.step, event.total_steps)
            if event.evaluation is not None:
                self._unsaved.setdefault(int(event.job_id), []).append(event.evaluation)
            return
        trial = self._trials[int(event.outcome.job_id)]
        self._unsaved.pop(trial.number, None)
        if not self._tried_again(event.slot, trial, event.outcome):
            self._finish(event.slot, trial, event.outcome)

    def _tried_again(self, slot: int, trial: Trial, outcome: Outcome) -> bool:
        """Start a trial again that may succeed: killed, or with a smaller part of its batch."""
        kind = outcome.failure.kind if outcome.failure else None
        if outcome.state == "cancelled":
            self._trials[trial.number] = trial.model_copy(update={"state": "interrupted"})
            return True
        if kind == "killed" and self._kills[trial.number] < self.spec.run.retries:
            self._kills[trial.number] += 1
            cause = outcome.failure.message if outcome.failure else kind
            self._say(f"trial {trial.number}: {cause}; starting it again")
            changes: dict[str, Any] = {}
        elif kind == "out_of_memory" and (trial.micro_batch or trial.configuration.batch_size) > 1:
            half = half_batch(trial)
            self._say(f"trial {trial.number}: out of memory; again in parts of {half} examples")
            self._fits[trial.arm] = min(half, self._fits.get(trial.arm, half))
            changes = {"micro_batch": half}
        else:
            return False
        self.reporter.trial_ended(slot, trial)
        self._start(trial, **changes)
        return True

    def _finish(self, slot: int, trial: Trial, outcome: Outcome) -> None:
        last = outcome.evaluations[-1] if outcome.evaluations else None
        ranged = round(outcome.lr_curve.cost) if outcome.lr_curve else 0
        trial = trial.model_copy(
            update={
                "state": outcome.state,
                "value": outcome.value if outcome.state in ("completed", "pruned") else None,
                "metrics": last.metrics if last else {},
                "steps": len(outcome.lrs) or ranged,
                "examples": last.examples if last else 0,
                "wall_seconds": outcome.wall_seconds,
                "device": outcome.device,
                "finished_at": datetime.now(UTC),
                "failure": outcome.failure,
                "info": outcome.info,
            }
        )
        self.store.save_outcome(
            self.study.name, trial, outcome.evaluations, outcome.lrs, outcome.lr_curve
        )
        self._trials[trial.number] = trial
        self._values[trial.number] = metric_values(outcome.evaluations, self.spec.study.metric)
        if outcome.lr_curve is not None:
            self._curves[trial.number] = outcome.lr_curve
        self.reporter.trial_ended(slot, trial)
        self._tell_plan()
        for sink in self.sinks:
            sink.trial_finished(
                self.study, trial, outcome.evaluations, outcome.lrs, outcome.lr_curve
            )
        self._stop_on_bug(trial)

    def _stop_on_bug(self, trial: Trial) -> None:
        """A bug in the user's code fails every trial alike; stop before the budget is gone."""
        if trial.failure is None or trial.failure.kind not in _BUGS:
            return
        self._bugs[trial.failure.message] += 1
        if self._bugs[trial.failure.message] >= self.spec.run.max_identical_failures:
            raise TaskError(
                f"study {self.study.name!r} stopped: {self._bugs[trial.failure.message]} trials"
                f" failed with: {trial.failure.message}",
                trial.failure.traceback,
            )

    def _interrupt(self, best_effort: bool = False) -> None:
        """End the workers; what ran becomes "interrupted" and is run again on resume."""
        self.executor.close()
        for trial in self._running():
            stopped = trial.model_copy(update={"state": "interrupted"})
            self._trials[trial.number] = stopped
            save = partial(self.store.save_trial, self.study.name, stopped)
            if best_effort:
                self._best_effort(save)
            else:
                save()

    def _say(self, text: str) -> None:
        self.reporter.message(text)

    def _best_effort(self, call: Callable[[], None]) -> None:
        """Tidy up after an error: a store that is out of reach must not hide the first error."""
        try:
            call()
        except TunerError as error:
            self._say(str(error))
