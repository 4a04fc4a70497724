"""Addresses of MLflow: links to it, bad ones, where files go, and what importing it costs."""

import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import pytest

from tests.servers import answers, free_port, wait_until
from tests.store.samples import make_study
from tuner.errors import BackendError, UsageError
from tuner.records import Study
from tuner.store.mlflow import (
    artifact_location,
    connect,
    dashboard,
    experiment_url,
    find_experiment,
    ping,
    sync,
    ui_command,
)
from tuner.store.sql import SqlStore, open_store


@pytest.fixture
def study() -> Study:
    return make_study("links", created_at=datetime.now().astimezone())


@pytest.fixture
def store(tmp_path: Path, study: Study) -> Iterator[SqlStore]:
    store = open_store(f"sqlite:///{tmp_path}/tuner.db")
    store.create_study(study)
    yield store
    store.close()


def test_links(local_uri: str, store: SqlStore, study: Study) -> None:
    assert experiment_url(local_uri, study) == "http://127.0.0.1:5000/#/experiments"
    sync(store, study.name, local_uri)
    experiment = find_experiment(connect(local_uri), study)
    assert experiment is not None
    page = experiment_url(local_uri, study)
    assert page.startswith(f"http://127.0.0.1:5000/#/experiments/{experiment.experiment_id}/runs?")
    ping(local_uri)


def test_links_hold_no_credentials() -> None:
    assert dashboard("https://me:secret@mlflow.example:5000/") == "https://mlflow.example:5000"
    for uri in ("https://me:secret@host", "postgresql://me:secret@host/mlflow"):
        assert "secret" not in ui_command(uri)


def test_an_unknown_study_is_refused(local_uri: str, store: SqlStore) -> None:
    with pytest.raises(UsageError, match="no study 'none'"):
        sync(store, "none", local_uri)


@pytest.mark.parametrize("uri", ["file:///nowhere", "nonsense://x", "sqlite:////dev/null/x.db"])
def test_a_bad_uri_is_one_line(uri: str, store: SqlStore, study: Study) -> None:
    for call in (lambda: ping(uri), lambda: sync(store, study.name, uri)):
        with pytest.raises(BackendError, match="MLflow at") as caught:
            call()
        assert "\n" not in str(caught.value)


def test_settings_of_the_user_are_kept(monkeypatch: pytest.MonkeyPatch, local_uri: str) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "77")
    monkeypatch.delenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", raising=False)
    connect(local_uri)
    assert os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] == "77"
    assert os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] == "1"
    assert os.environ["MLFLOW_DISABLE_TELEMETRY"] == "true"


def test_mlflow_is_imported_only_when_used() -> None:
    code = "import sys, tuner.store.sink; print('mlflow' in sys.modules)"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "False"


@pytest.mark.parametrize(
    ("uri", "root", "location"),
    [
        ("sqlite:////home/mlflow.db", None, "file:///home/artifacts"),
        ("sqlite:////home/mlflow.db", "/files", "file:///files"),
        ("sqlite:////home/mlflow.db", "s3://bucket/x", "s3://bucket/x"),
        ("http://host:5000", None, None),
        ("https://host", "/files", None),  # the server could not read it
        ("https://host", "s3://bucket/x", "s3://bucket/x"),
    ],
)
def test_where_files_go(uri: str, root: str | None, location: str | None) -> None:
    assert artifact_location(uri, root) == location


@pytest.mark.slow
def test_the_command_opens_the_dashboard(
    local_uri: str, store: SqlStore, study: Study, tmp_path: Path
) -> None:
    sync(store, study.name, local_uri)
    port = str(free_port())
    command = ui_command(local_uri).replace("5000", port)
    assert shlex.split(command)[-1] == port
    process = subprocess.Popen(["sh", "-c", command], start_new_session=True)
    try:
        wait_until(lambda: answers(f"http://127.0.0.1:{port}/health"), 90, "the dashboard")
        server = f"http://127.0.0.1:{port}"
        page = experiment_url(local_uri, study).replace("5000", port)
        assert experiment_url(server, study) == page
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
