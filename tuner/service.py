"""Studies from beginning to end: what the command line calls, and scripts may call too."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tuner.advice import warnings_for
from tuner.answer import compare_study
from tuner.compare.verdicts import Comparison, comparison_json
from tuner.errors import NoCompletedTrialError, UsageError
from tuner.executors.base import Slot
from tuner.executors.devices import leased, plan_slots
from tuner.executors.local import LocalExecutor
from tuner.forecast import Forecast, forecast
from tuner.jobs import Places, check_task, job_of, run_job
from tuner.lease import is_alive
from tuner.paths import Home
from tuner.progress import Reporter
from tuner.provenance import collect
from tuner.records import Evaluation, LrCurve, Outcome, Study, Trial
from tuner.runner import Coordinator
from tuner.spec import StudySpec
from tuner.stages import History, warm_arms
from tuner.store.base import Store
from tuner.store.mlflow import SyncReport, sync
from tuner.store.sink import MlflowSink


@dataclass(frozen=True)
class Environment:
    """Where studies are kept and how they run.

    Attributes:
        search_path: folders from which tasks are imported, before `sys.path`.
        mlflow_uri: None = no MLflow.
        should_stop: asked a few times a second; True stops the study and keeps everything.
        warn: told of each known mistake in the study before its first trial.
    """

    store: Store
    home: Home
    search_path: tuple[str, ...]
    reporter: Callable[[StudySpec], Reporter]
    mlflow_uri: str | None = None
    should_stop: Callable[[], bool] = lambda: False
    warn: Callable[[str], None] = lambda text: None

    def places(self, study: str) -> Places:
        """Where the study's task comes from and its checkpoints go."""
        return Places(self.search_path, self.home.checkpoints / study)


@dataclass(frozen=True)
class Result:
    """How a study stands after a run; `comparison` is None unless it was completed."""

    study: Study
    comparison: Comparison | None = None
    report: Path | None = None


@contextmanager
def _executor(slots: int | None, home: Home, study: str) -> Iterator[LocalExecutor]:
    with ExitStack() as stack:
        free = stack.enter_context(leased(plan_slots(slots), home.devices))
        yield stack.enter_context(LocalExecutor(free, home.logs / study))


def with_slots(spec: StudySpec, slots: tuple[Slot, ...]) -> StudySpec:
    """The number of slots is part of the plan: see `tuner.stages.lookback`."""
    run = spec.run.model_copy(update={"slots": len(slots)})
    return spec.model_copy(update={"run": run})


def warm_started(spec: StudySpec, store: Store) -> StudySpec:
    """The study with what the ones in `study.warm_start` know about its arms.

    Raises:
        UsageError: there is no such study, it is a range test, or it knows nothing of these arms.
    """
    older = []
    for name in spec.study.warm_start:
        study = store.get_study(name)
        trials = {t.number: t for t in store.trials(name)}
        found = History(trials, store.lr_curves(name))
        older.append((StudySpec.of(study), found))
    warm = warm_arms(spec, older)
    if older and not warm:
        theirs = sorted({a.optimizer for old, _ in older for a in old.arms})
        raise UsageError(
            f"nothing to start from in {', '.join(spec.study.warm_start)}: no finished trial of an"
            f" optimizer of this study; they have {', '.join(theirs)}"
        )
    return spec.model_copy(update={"warm": warm})


def new_study(spec: StudySpec, provenance: dict[str, Any]) -> Study:
    """A study's row before its first trial."""
    now = datetime.now(UTC)
    return Study(
        name=spec.study.name,
        state="running",
        spec=spec.model_dump(mode="json"),
        created_at=now,
        updated_at=now,
        provenance=provenance,
    )


@dataclass(frozen=True)
class Checked:
    """A task that was tried, and the workers that did it and have it loaded."""

    executor: LocalExecutor
    info: dict[str, Any]


@contextmanager
def checked(
    spec: StudySpec,
    home: Home,
    search_path: tuple[str, ...],
    should_stop: Callable[[], bool] = lambda: False,
) -> Iterator[Checked]:
    """Try the task; when that fails nothing is left behind.

    Raises:
        UsageError: the task or the metric does not exist.
        TaskError: the user's code fails.
    """
    name = spec.study.name
    made = home.logs / name if home.root.exists() else home.root
    made_before, tried = made.exists(), False
    try:
        with _executor(spec.run.slots, home, name) as executor:
            places = Places(search_path, home.checkpoints / name)
            info = check_task(spec, executor, places, should_stop)
            tried = True
            yield Checked(executor, info)
    finally:
        if not tried and not made_before:
            shutil.rmtree(made, ignore_errors=True)


def start(spec: StudySpec, env: Environment, replace: bool = False) -> Result:
    """Check the task, create the study and run it; raises as `checked` and `run_checked` do."""
    with checked(spec, env.home, env.search_path, env.should_stop) as ready:
        return run_checked(spec, env, ready, replace)


def run_checked(spec: StudySpec, env: Environment, ready: Checked, replace: bool) -> Result:
    """Create the study of a task that was checked, and run it.

    Raises:
        UsageError: the name is taken (and `replace` is False), or a coordinator is at work on it.
        TaskError: the user's code fails too often.
        NoCompletedTrialError: not one trial completed.
    """
    name = spec.study.name
    spec = warm_started(spec, env.store)
    taken = any(study.name == name for study in env.store.list_studies())
    if taken and not replace:
        raise UsageError(
            f"study {name!r} exists: `tuner study resume {name}` goes on with it, --replace"
            " starts again, -S study.name=... gives another name"
        )
    forecast(spec, ready.info, len(ready.executor.slots))  # raises when a limit is too small
    for advice in warnings_for(spec, ready.info):
        env.warn(str(advice))
    provenance = collect(spec.study.task, Path.cwd()) | {"data": ready.info.get("data", {})}
    study = new_study(with_slots(spec, ready.executor.slots), provenance)
    if taken:
        delete(env, name)
    env.store.create_study(study)
    return _run(study, env, ready.executor)


def resume(name: str, env: Environment, slots: int | None = None) -> Result:
    """Go on with a study where it stands; trials from now on tell today's code and packages.

    Data that differ from those it began with are no error, but its scores do not compare: it warns.

    Raises:
        UsageError: there is no such study, or it is a range test.
        TaskError: the user's code fails.
        TunerError: another coordinator runs it.
    """
    study = env.store.get_study(name)
    spec = StudySpec.of(study)
    provenance = {**study.provenance, **collect(spec.study.task, Path.cwd())}
    study = study.model_copy(update={"provenance": provenance})
    with _executor(slots or spec.run.slots, env.home, name) as executor:
        if study.state != "completed":
            found = check_task(spec, executor, env.places(name), env.should_stop)
            for text in _changed_data(study.provenance.get("data", {}), found.get("data", {})):
                env.warn(text)
        return _run(study, env, executor)


def _changed_data(before: dict[str, str], now: dict[str, str]) -> Iterator[str]:
    for part in sorted(before.keys() & now.keys()):
        if before[part] != now[part]:
            yield (
                f"the {part} data are not those that the study began with ({now[part]}, then"
                f" {before[part]}): scores of before and after do not compare"
            )


def _run(study: Study, env: Environment, executor: LocalExecutor) -> Result:
    spec = StudySpec.of(study)
    reporter = env.reporter(spec)
    sink = MlflowSink(env.mlflow_uri) if env.mlflow_uri else None
    coordinator = Coordinator(
        study=study,
        store=env.store,
        executor=executor,
        places=env.places(study.name),
        reporter=reporter,
        sinks=[sink] if sink else [],
        should_stop=env.should_stop,
    )
    result = Result(study.model_copy(update={"state": "failed"}))
    try:
        coordinator.run()
        result = conclude(study.name, env)
        return result
    finally:
        reporter.close()
        if sink is not None:
            sink.study_finished(result.study, arm_rows(result.comparison))
            if result.report is not None:
                sink.log_report(result.study, result.report)
            told = sink.close(timeout=60.0)
            if told.failed:
                reporter.message(
                    f"{told.message}; `tuner mlflow sync {study.name}` fills the gap later"
                )


def arm_rows(comparison: Comparison | None) -> list[dict[str, Any]]:
    """The entries of `compare --json`, as MLflow's runs of the arms show them."""
    if comparison is None:
        return []
    return list(comparison_json("", comparison.metric, comparison)["arms"])


def sync_mlflow(name: str, store: Store, uri: str) -> SyncReport:
    """Bring MLflow to what the store says of a study; a second call changes nothing.

    Raises:
        UsageError: no such study.
        BackendError: MLflow or the database cannot be reached.
    """
    comparison = None
    if "arms" in store.get_study(name).spec:  # a range test has none
        with suppress(NoCompletedTrialError):
            comparison = comparison_of(name, store)
    return sync(store, name, uri, arms=arm_rows(comparison))


def conclude(name: str, env: Environment) -> Result:
    """Compare the arms of a completed study, keep the answer and write the report.

    Raises:
        NoCompletedTrialError: not one trial completed.
    """
    study = env.store.get_study(name)
    if study.state != "completed":
        return Result(study)
    try:
        comparison = comparison_of(name, env.store)
    except NoCompletedTrialError:
        env.store.set_study_state(name, "failed")
        raise
    env.store.set_study_state(name, "completed", comparison.answer)
    study = env.store.get_study(name)
    path = env.home.reports / f"{name}.html"
    try:
        return Result(study, comparison, make_report(name, env.store, path, comparison))
    except OSError as error:  # the answer is there, and `tuner study report` writes it later
        env.warn(f"no report: {path}: {error.strerror or error}")
        return Result(study, comparison)


def comparison_of(name: str, store: Store) -> Comparison:
    """Compare the arms of a study by what it has so far.

    Raises:
        NoCompletedTrialError: there is nothing to judge by yet.
    """
    spec = StudySpec.of(store.get_study(name))
    return compare_study(spec, store.trials(name), store.lr_curves(name))


def make_report(name: str, store: Store, path: Path, comparison: Comparison) -> Path:
    """Write the report of a study as one HTML file. Raises OSError when it cannot be written."""
    from tuner.compare.report import write_report  # brings matplotlib, which few commands need

    trials = store.trials(name)
    evaluations: dict[int, list[Evaluation]] = {
        t.number: store.evaluations(name, t.number) for t in trials
    }
    curves: dict[int, LrCurve] = store.lr_curves(name)
    return write_report(path, store.get_study(name), trials, evaluations, curves, comparison)


def refuse_running(store: Store, name: str) -> None:
    """Raises UsageError when a coordinator is at work on the study."""
    if is_alive(store.get_lease(name), datetime.now(UTC)):
        raise UsageError(f"study {name!r} is running; `tuner study stop {name}` first")


def delete(env: Environment, name: str) -> None:
    """Remove a study with its checkpoints and report.

    Raises:
        UsageError: no such study, or a coordinator is at work on it.
    """
    refuse_running(env.store, name)
    env.store.delete_study(name)
    shutil.rmtree(env.home.checkpoints / name, ignore_errors=True)
    (env.home.reports / f"{name}.html").unlink(missing_ok=True)


def rerun(name: str, number: int, env: Environment) -> tuple[Trial, list[Evaluation], Outcome]:
    """Run a trial of a study again, as it was; nothing is stored.

    Returns the trial, its evaluations then, and the outcome now. On the CPU the metrics are
    bit-equal when code, packages and number of threads are the same.
    """
    study = env.store.get_study(name)
    spec = StudySpec.of(study)
    trial = env.store.get_trial(name, number)
    job = job_of(spec, trial, env.places(name)).model_copy(update={"checkpoint": None})
    with _executor(spec.run.slots, env.home, name) as executor:
        return trial, env.store.evaluations(name, number), run_job(executor, job)


@dataclass(frozen=True)
class DryRun:
    """What a study would do and cost, and what the check job found out."""

    slots: tuple[Slot, ...]
    info: dict[str, Any]
    forecast: Forecast


def dry_run(spec: StudySpec, search_path: tuple[str, ...], store: Store | None = None) -> DryRun:
    """Check the task and estimate the cost; nothing is created.

    `store` is asked for the studies in `study.warm_start`.

    Raises:
        TaskError, UsageError: as `checked`, `warm_started` and `forecast`.
    """
    if store is not None:
        spec = warm_started(spec, store)
    with TemporaryDirectory() as folder, checked(spec, Home(Path(folder)), search_path) as ready:
        slots, info = ready.executor.slots, ready.info
    return DryRun(slots, info, forecast(spec, info, len(slots)))
