import shutil
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest

from tests.servers import MlflowServer, PostgresServer
from tuner.store.mlflow import ping
from tuner.store.sql import SqlStore, open_store

_names = count()


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    server = PostgresServer()
    try:
        server.start()
        yield server
    finally:
        server.remove()


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of a database without any tables."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/tuner.db"
    server: PostgresServer = request.getfixturevalue("postgres")
    return server.create_database(f"test_{next(_names)}")


@pytest.fixture
def store(url: str) -> Iterator[SqlStore]:
    store = open_store(url)
    yield store
    store.close()


@pytest.fixture(scope="session")
def empty_mlflow_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MLflow takes seconds to make its tables, so servers and tests start from a copy."""
    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    ping(f"sqlite:///{path}")
    return path


@pytest.fixture(scope="session")
def mlflow_server(empty_mlflow_database: Path) -> Iterator[MlflowServer]:
    server = MlflowServer(empty_mlflow_database.parent)
    try:
        server.start()
        yield server
    finally:
        server.kill()


@pytest.fixture
def local_uri(tmp_path: Path, empty_mlflow_database: Path) -> str:
    """The tracking URI of an empty local store."""
    path = tmp_path / "home" / "mlflow.db"
    path.parent.mkdir()
    shutil.copy(empty_mlflow_database, path)
    return f"sqlite:///{path}"


@pytest.fixture(params=["local", "server"])
def tracking_uri(request: pytest.FixtureRequest) -> str:
    """A local store and a server's; the server's holds experiments of other tests too."""
    if request.param == "local":
        return str(request.getfixturevalue("local_uri"))
    server: MlflowServer = request.getfixturevalue("mlflow_server")
    return server.uri
