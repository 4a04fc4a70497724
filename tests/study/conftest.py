"""A home, a store and the small tasks, for whole studies."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.jobs import TASKS
from tuner.paths import Home
from tuner.progress import LineReporter
from tuner.service import Environment
from tuner.store.sql import open_store


@pytest.fixture
def env(tmp_path: Path) -> Iterator[Environment]:
    home = Home(tmp_path / "home")
    store = open_store(home.storage_url)
    yield Environment(store, home, (str(TASKS),), LineReporter)
    store.close()
