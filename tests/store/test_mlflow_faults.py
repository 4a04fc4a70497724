"""MLflow down, slow, broken or killed: the study goes on, says so once, and `sync` repairs."""

import socket
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.servers import free_port
from tests.store.samples import make_evaluation, make_finished_trial, make_study, make_trial
from tuner.errors import BackendError
from tuner.records import Study
from tuner.store.mlflow import ping, sync
from tuner.store.sink import MlflowSink
from tuner.store.sql import SqlStore, open_store

STUDY = make_study("faults", created_at=datetime.now().astimezone())


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SqlStore]:
    store = open_store(f"sqlite:///{tmp_path}/tuner.db")
    store.create_study(STUDY)
    yield store
    store.close()


class Broken(BaseHTTPRequestHandler):
    """Answers 500 to everything, repeating what it was sent."""

    def answer(self) -> None:
        """Send the error."""
        self.send_response(500)
        self.end_headers()
        self.wfile.write(f"internal error for {self.headers.get('Authorization')}".encode())

    do_GET = do_POST = do_PATCH = answer

    def log_message(self, format: str, *args: Any) -> None:
        """Stay quiet."""


@contextmanager
def down() -> Iterator[str]:
    yield f"http://me:hidden@127.0.0.1:{free_port()}"


@contextmanager
def broken() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Broken)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://me:hidden@127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@contextmanager
def hanging() -> Iterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as server:  # accepts, and never answers
        yield f"http://me:hidden@127.0.0.1:{server.getsockname()[1]}"


def run_study(sink: MlflowSink, study: Study, trials: int) -> None:
    sink.study_started(study)
    for number in range(trials):
        sink.trial_started(make_trial(number))
        sink.trial_finished(study, make_finished_trial(number), [make_evaluation()], [0.1])
    sink.study_finished(study, [])


@pytest.mark.parametrize("fault", [down, broken, hanging])
def test_a_study_goes_on_and_says_so_once(fault: Any, caplog: pytest.LogCaptureFixture) -> None:
    ping_error = ""
    with fault() as uri:
        started = time.monotonic()
        sink = MlflowSink(uri)
        run_study(sink, STUDY, trials=20)
        assert time.monotonic() - started < 1  # nothing of it waits for the network
        report = sink.close(timeout=30)
        with pytest.raises(BackendError, match="MLflow at http") as caught:
            ping(uri)
        ping_error = str(caught.value)
    assert report.failed
    assert report.pending == 42
    warnings = [r.getMessage() for r in caplog.records if r.name.startswith("tuner")]
    assert len(warnings) == 1
    assert "the study goes on without it" in warnings[0]
    for text in (warnings[0], report.message, ping_error):
        assert "hidden" not in text
        assert "\n" not in text


def test_a_database_that_fails_is_told_in_its_own_words_without_the_statement(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    sink = MlflowSink(uri)
    run_study(sink, STUDY, trials=1)
    assert not sink.close(timeout=30).failed
    with sqlite3.connect(tmp_path / "mlflow.db") as database:
        database.execute("DROP TABLE metrics")
    sink = MlflowSink(uri)
    run_study(sink, STUDY, trials=2)
    message = sink.close(timeout=30).message
    assert message.startswith(f"MLflow at {uri}: no such table: metrics; ")
    assert [r.name for r in caplog.records] == ["tuner.mlflow"]


def test_close_does_not_wait_for_a_server_that_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
    with hanging() as uri:
        sink = MlflowSink(uri)
        sink.study_started(STUDY)
        started = time.monotonic()
        report = sink.close(timeout=0.2)
        assert time.monotonic() - started < 10
    assert (report.failed, report.pending) == (True, 1)
    assert "is slow; 1 updates are missing there" in report.message


def test_an_answer_of_mlflow_cannot_leak_credentials(store: SqlStore) -> None:
    with broken() as uri, pytest.raises(BackendError) as caught:
        sync(store, STUDY.name, uri)
    assert "hidden" not in str(caught.value)
    assert "bWU6aGlkZGVu" not in str(caught.value)  # base64 of me:hidden
