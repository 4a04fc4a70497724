"""A home, a store and the small tasks, for whole studies."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import pytest

from tests.jobs import TASKS
from tuner import service
from tuner.executors.inline import InlineExecutor
from tuner.paths import Home
from tuner.progress import LineReporter
from tuner.service import Environment
from tuner.store.sql import open_store


@contextmanager
def environment(folder: Path) -> Iterator[Environment]:
    home = Home(folder / "home")
    store = open_store(home.storage_url)
    yield Environment(store, home, (str(TASKS),), LineReporter)
    store.close()


@pytest.fixture
def env(tmp_path: Path) -> Iterator[Environment]:
    with environment(tmp_path) as env:
        yield env


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Studies train here: for what the coordinator does with outcomes, whoever reports them.

    A worker process takes seconds to start. That executors report the same is tested where they
    are (test_executor_conformance.py).
    """
    monkeypatch.setattr(service, "_executor", lambda *_: nullcontext(InlineExecutor()))
