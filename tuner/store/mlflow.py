"""MLflow as a projection of the store: a sink that follows a study, and `sync` that rebuilds it.

MLflow may be down, slow or empty: a study never waits for it, and `sync` fills what is missing.
Identity lies in tags (`tuner.study_key` of an experiment, `tuner.key` of a run), since names can be
taken, changed or deleted by anybody.
"""

from __future__ import annotations

import logging
import os
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit

from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from tuner.errors import BackendError
from tuner.paths import mask_password
from tuner.records import LrCurve, Record, Study
from tuner.store.base import Store
from tuner.store.projection import (
    LR_CURVE_FILE,
    RunView,
    arm_view,
    study_key,
    study_view,
    trial_view,
)

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Experiment, Run

DASHBOARD = "http://127.0.0.1:5000"
METRICS_PER_CALL = 1000  # MLflow's limit
RUNS_PER_PAGE = 1000
_SETTINGS = {  # for this process, unless the user has set them
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",  # standard output is for data
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
}
_UNFINISHED = "unfinished "  # before the digest while a run is being written

Change = Literal["created", "completed", "unchanged"]


class SyncReport(Record):
    """How many runs `sync` created, completed or found as they should be."""

    created: int
    completed: int
    unchanged: int


def sync(
    store: Store,
    study_name: str,
    uri: str,
    artifact_root: str | None = None,
    arms: Sequence[Mapping[str, Any]] = (),
) -> SyncReport:
    """Bring MLflow to what the store says; a second call changes nothing.

    Args:
        arms: the entries of `tuner study compare --json`, for the runs of the arms.

    Raises:
        UsageError: no such study.
        BackendError: MLflow or the database cannot be reached.
    """
    study = store.get_study(study_name)
    with explained(uri):
        writer = RunWriter(connect(uri), study, artifact_location(uri, artifact_root))
        changes = [writer.write(view) for view in _views(store, study, arms)]
        changes += writer.remove_duplicates()
    return SyncReport(
        created=changes.count("created"),
        completed=changes.count("completed"),
        unchanged=changes.count("unchanged"),
    )


def _views(store: Store, study: Study, arms: Sequence[Mapping[str, Any]]) -> Iterator[RunView]:
    """All runs of a study, parents first."""
    yield study_view(study)
    trials, curves = store.trials(study.name), store.lr_curves(study.name)
    compared = {arm["name"]: arm for arm in arms}
    configurations = {trial.arm: trial.configuration for trial in trials}
    for arm, used in configurations.items():
        yield arm_view(study, arm, used.optimizer, used.schedule, compared.get(arm))
    for trial in trials:
        yield trial_view(
            study,
            trial,
            store.evaluations(study.name, trial.number),
            store.step_lrs(study.name, trial.number),
            curves.get(trial.number),
        )


def ping(uri: str) -> None:
    """Ask MLflow for anything; raises `BackendError` when it does not answer."""
    with explained(uri):
        connect(uri).search_experiments(max_results=1)


def experiment_url(uri: str, study: Study) -> str:
    """The page of a study's runs; raises `BackendError` when MLflow does not answer."""
    with explained(uri):
        experiment = find_experiment(connect(uri), study)
    if experiment is None:
        return f"{dashboard(uri)}/#/experiments"
    # without the workflow MLflow opens a page about prompts and traces
    runs = f"experiments/{experiment.experiment_id}/runs?workflowType=machine_learning"
    return f"{dashboard(uri)}/#/{runs}"


def dashboard(uri: str) -> str:
    """The address of the web page, without credentials; a local store's is that of `ui_command`."""
    parts = urlsplit(uri)
    if parts.scheme not in ("http", "https"):
        return DASHBOARD
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl().rstrip("/")


def ui_command(uri: str) -> str:
    """The one command that opens the dashboard; for a local store it starts a small server."""
    python = os.path.relpath(sys.executable)
    python = shlex.quote(sys.executable if python.startswith("..") else python)
    if urlsplit(uri).scheme in ("http", "https"):
        return f"{python} -m webbrowser {shlex.quote(dashboard(uri))}"
    host, port = DASHBOARD.removeprefix("http://").split(":")
    return (
        f"MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false {python} -m mlflow ui --workers 1"
        f" --backend-store-uri {shlex.quote(mask_password(uri))} --host {host} --port {port}"
    )


def connect(uri: str) -> MlflowClient:
    """A client; imports MLflow, which takes a second, and keeps it quiet and impatient."""
    for name, value in _SETTINGS.items():
        os.environ.setdefault(name, value)
    from mlflow import MlflowClient

    for name in ("mlflow", "alembic"):  # an error reaches us as an exception, and is told once
        logging.getLogger(name).setLevel(logging.CRITICAL)
    return MlflowClient(tracking_uri=uri)


@contextmanager
def explained(uri: str) -> Iterator[None]:
    """Turn MLflow's errors into one `BackendError` line without credentials."""
    from mlflow.exceptions import MlflowException

    try:
        yield
    except (MlflowException, SQLAlchemyError, OSError) as error:
        raise BackendError(problem(uri, error)) from error


def problem(uri: str, error: BaseException) -> str:
    """One line that says which MLflow failed, and how, in its database's own words if it can."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, DBAPIError):
        cause = cause.__cause__ or cause.__context__
    text = str(error if cause is None else cause.orig)
    detail = mask_password(" ".join(text.split()))[:300]
    return f"MLflow at {mask_password(uri)}: {detail or type(error).__name__}"


def artifact_location(uri: str, root: str | None) -> str | None:
    """Where a new experiment keeps its files: beside a local database, never in the current folder.

    None leaves it to the tracking server, which could not show a folder of this machine.
    """
    if root is not None and "://" in root:
        return root
    if urlsplit(uri).scheme in ("http", "https"):
        return None
    if root is not None:
        return Path(root).absolute().as_uri()
    if uri.startswith("sqlite:///"):
        return (Path(uri.removeprefix("sqlite:///")).absolute().parent / "artifacts").as_uri()
    return None


def find_experiment(client: MlflowClient, study: Study) -> Experiment | None:
    """The experiment of exactly this study; None when there is none or it was deleted."""
    same_study = f"tags.`tuner.study_key` = '{study_key(study)}'"
    found = client.search_experiments(filter_string=same_study, order_by=["creation_time ASC"])
    return found[0] if found else None


def _create_experiment(client: MlflowClient, study: Study, location: str | None) -> str:
    """Create it under the study's name, or under a longer one when an older study has the name."""
    from mlflow.exceptions import MlflowException

    tags = {"tuner.study": study.name, "tuner.study_key": study_key(study)}
    dated = f"{study.name} ({study.created_at:%Y-%m-%d %H:%M:%S})"
    for number in count():
        name = [study.name, dated][number] if number < 2 else f"{dated} {number}"
        place = location and f"{location.rstrip('/')}/{study.name}-{tags['tuner.study_key']}"
        try:
            return str(client.create_experiment(name, artifact_location=place, tags=tags))
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
    raise AssertionError("count() never ends")


@dataclass
class WrittenRun:
    """A run as MLflow has it."""

    run_id: str
    parent_id: str | None
    status: str
    digest: str | None
    params: dict[str, str]

    @classmethod
    def of(cls, run: Run) -> WrittenRun:
        """Read it from a search result."""
        tags = run.data.tags
        return cls(
            run_id=run.info.run_id,
            parent_id=tags.get("mlflow.parentRunId"),
            status=run.info.status,
            digest=tags.get("tuner.digest"),
            params=dict(run.data.params),
        )

    def conflicts_with(self, view: RunView) -> bool:
        """Whether it holds metrics or parameters of another attempt; MLflow keeps both for ever."""
        other = self.digest is not None and self.digest.removeprefix(_UNFINISHED) != view.digest
        return other or any(self.params.get(k, v) != v for k, v in view.params.items())


class RunWriter:
    """Writes the runs of one study, each exactly once."""

    def __init__(self, client: MlflowClient, study: Study, location: str | None) -> None:
        self._client = client
        experiment = find_experiment(client, study)
        self.experiment_id = (
            experiment.experiment_id if experiment else _create_experiment(client, study, location)
        )
        self._runs: dict[str, WrittenRun] = {}
        self._duplicates: list[str] = []
        for run in self._search() if experiment else ():
            key = run.data.tags.get("tuner.key", "")
            if key in self._runs:
                self._duplicates.append(run.info.run_id)
            elif key:
                self._runs[key] = WrittenRun.of(run)

    def _search(self) -> Iterator[Run]:
        token = None
        while True:
            page = self._client.search_runs(
                [self.experiment_id],
                max_results=RUNS_PER_PAGE,
                order_by=["attributes.start_time ASC", "attributes.run_id ASC"],
                page_token=token,
            )
            yield from page
            token = page.token
            if not token:
                return

    def has(self, key: str) -> bool:
        """Whether there is a run of that key."""
        return key in self._runs

    def write(self, view: RunView) -> Change:
        """Make MLflow's run equal to the view; its parent must have been written before."""
        parent_id = self._runs[view.parent].run_id if view.parent else None
        digest = view.digest
        run = self._runs.get(view.key)
        if run and view.replaceable and run.conflicts_with(view):
            self._client.delete_run(run.run_id)
            run = None
        if run is None:
            run = self._create(view, parent_id)
            self._fill(run, view)
            return "created"
        moved = self._move(run, parent_id)
        if digest is not None and run.digest != digest:
            self._fill(run, view)
            return "completed"
        return "completed" if self._set_status(run, view) or moved else "unchanged"

    def close_arms(self, study: RunView) -> None:
        """End the runs of the arms together with the study's."""
        for key, run in self._runs.items():
            if key.startswith("arm:"):
                self._set_status(run, study)

    def remove_duplicates(self) -> list[Change]:
        """Delete runs of a key that has another run, left by two writers at once."""
        for run_id in self._duplicates:
            self._client.delete_run(run_id)
        removed: list[Change] = ["completed" for _ in self._duplicates]
        self._duplicates = []
        return removed

    def attach(self, key: str, path: Path) -> None:
        """Add a file to the artifacts of a run."""
        self._client.log_artifact(self._runs[key].run_id, str(path))

    def _create(self, view: RunView, parent_id: str | None) -> WrittenRun:
        parent = {"mlflow.parentRunId": parent_id} if parent_id else {}
        run = self._client.create_run(
            self.experiment_id,
            start_time=view.started,
            run_name=view.name,
            tags={**view.tags, **parent, "tuner.key": view.key, "mlflow.source.name": "tuner"},
        )
        self._runs[view.key] = WrittenRun.of(run)
        return self._runs[view.key]

    def _fill(self, run: WrittenRun, view: RunView) -> None:
        from mlflow.entities import Metric, Param, RunTag

        digest = view.digest
        mark = {"tuner.digest": f"{_UNFINISHED}{digest}"} if digest else {}
        params = [Param(k, v) for k, v in view.params.items() if k not in run.params]
        tags = [RunTag(key, value) for key, value in {**view.tags, **mark}.items()]
        self._client.log_batch(run.run_id, params=params, tags=tags, synchronous=True)
        metrics = [Metric(p.key, p.value, p.timestamp, p.step) for p in view.metrics]
        for start in range(0, len(metrics), METRICS_PER_CALL):
            batch = metrics[start : start + METRICS_PER_CALL]
            self._client.log_batch(run.run_id, metrics=batch, synchronous=True)
        run.params = {**view.params, **run.params}
        for name, text in view.files.items():
            self._client.log_text(run.run_id, text, name)
        if LR_CURVE_FILE in view.files:
            from tuner.compare.plots import lr_curves_figure

            curve = LrCurve.model_validate_json(view.files[LR_CURVE_FILE])
            figure = lr_curves_figure({view.params["optimizer"]: curve})
            self._client.log_figure(run.run_id, figure, "lr_curve.png")
        self._set_status(run, view)
        if digest:
            self._client.set_tag(run.run_id, "tuner.digest", digest)
            run.digest = digest

    def _set_status(self, run: WrittenRun, view: RunView) -> bool:
        if run.status == view.status:
            return False
        if view.ended is None:
            self._client.update_run(run.run_id, status=view.status)
        else:
            self._client.set_terminated(run.run_id, view.status, view.ended)
        run.status = view.status
        return True

    def _move(self, run: WrittenRun, parent_id: str | None) -> bool:
        if run.parent_id == parent_id or parent_id is None:
            return False
        self._client.set_tag(run.run_id, "mlflow.parentRunId", parent_id)
        run.parent_id = parent_id
        return True
