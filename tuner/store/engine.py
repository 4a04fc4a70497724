"""Connections, transactions, retries, and one clear line for each way a database can fail."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import URL, Connection, Engine, create_engine, event, make_url
from sqlalchemy.exc import (
    ArgumentError,
    DBAPIError,
    IntegrityError,
    InterfaceError,
    OperationalError,
)
from tenacity import (
    RetryCallState,
    Retrying,
    retry_if_exception,
    stop_after_delay,
    wait_random_exponential,
)

from tuner.errors import BackendError, UsageError

T = TypeVar("T")
logger = logging.getLogger("tuner.store")

RETRY_SECONDS = 30.0
BUSY_SECONDS = 5.0  # one wait for SQLite's lock; the retries around it make up RETRY_SECONDS

_DRIVERS = ("sqlite", "sqlite+pysqlite", "postgresql", "postgresql+psycopg")

# WAL keeps readers and the writer apart. NORMAL syncs at checkpoints only: a killed process loses
# nothing, a power cut may lose the last transactions but never damages the file.
_SQLITE_SETUP = ("PRAGMA journal_mode=WAL", "PRAGMA synchronous=NORMAL")
# A writer takes the lock at once, since a reader that turns into a writer cannot wait for it.
# Migrations rebuild tables, and dropping the old one must not cascade to its children.
_SQLITE_BEGIN = {
    "read": ("BEGIN",),
    "write": ("PRAGMA foreign_keys=ON", "BEGIN IMMEDIATE"),
    "migrate": ("PRAGMA foreign_keys=OFF", "BEGIN IMMEDIATE"),
}
_POSTGRESQL_CONNECT = {  # a server that vanished is noticed within seconds
    "application_name": "tuner",
    "connect_timeout": 5,
    "keepalives_idle": 10,
    "tcp_user_timeout": 15_000,
}

_SQLITE_TRANSIENT = ("SQLITE_BUSY", "SQLITE_LOCKED", "SQLITE_PROTOCOL")
_SQLITE_MEANING = {
    "SQLITE_BUSY": "is locked by another process",
    "SQLITE_CANTOPEN": "cannot be opened (is its folder there, and may you write to it?)",
    "SQLITE_CORRUPT": "is damaged (restore a backup, or move the file away)",
    "SQLITE_FULL": "cannot grow: the disk is full",
    "SQLITE_IOERR": "cannot be read or written (is the disk full or gone?)",
    "SQLITE_NOTADB": "is not a SQLite database",
    "SQLITE_PERM": "may not be accessed",
    "SQLITE_READONLY": "cannot be written: the file or its folder is read-only",
}
# https://www.postgresql.org/docs/current/errcodes-appendix.html: connection lost, serialization
# failure, deadlock, too many connections, server shutting down or starting up.
_POSTGRESQL_TRANSIENT = ("08", "40001", "40P01", "53300", "57P01", "57P02", "57P03")
_POSTGRESQL_PERMANENT_CONNECT = (
    "authentication failed",
    "does not exist",
    "no password supplied",
    "no pg_hba.conf entry",
    "not permitted to log in",
)


def parse_url(url: str) -> URL:
    """Parse a database URL; raises `UsageError` when it is none of the supported kinds."""
    allowed = "use sqlite:///path/to/file.db or postgresql://user@host/database"
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):  # ValueError: a port that is no number
        raise UsageError(f"the database URL cannot be parsed; {allowed}") from None
    if parsed.drivername not in _DRIVERS:
        raise UsageError(f"database {parsed.drivername!r} is not supported; {allowed}")
    if parsed.get_backend_name() == "sqlite" and parsed.database in (None, "", ":memory:"):
        raise UsageError(f"an SQLite database in memory cannot be shared; {allowed}")
    return parsed


def location(url: URL) -> str:
    """Name a database for people: its file, or host, port and name; never the password."""
    if url.get_backend_name() == "sqlite":
        return f"SQLite database {url.database}"
    host = url.host or url.query.get("host") or "localhost"
    return f"PostgreSQL database {host}:{url.port or 5432}/{url.database}"


class Database:
    """An engine whose transactions are retried while the trouble may pass.

    Raises `UsageError` for a bad URL, and `BackendError` from every call when the database stays
    out of reach for `retry_seconds` or is damaged.
    """

    def __init__(self, url: str, retry_seconds: float = RETRY_SECONDS) -> None:
        self.url = parse_url(url)
        self.location = location(self.url)
        self._retry_seconds = retry_seconds
        self._engine = _create_engine(self.url, min(BUSY_SECONDS, retry_seconds))

    def read(self, work: Callable[[Connection], T]) -> T:
        """Run `work` in a transaction that only reads."""
        return self._transact("read", work)

    def write(self, work: Callable[[Connection], T]) -> T:
        """Run `work` in a transaction; it may run more than once, so it must be idempotent."""
        return self._transact("write", work)

    def migrate(self, work: Callable[[Connection], T]) -> T:
        """Run `work` in a transaction in which SQLite does not enforce foreign keys."""
        return self._transact("migrate", work)

    def close(self) -> None:
        """Close all connections."""
        self._engine.dispose()

    def _transact(self, purpose: str, work: Callable[[Connection], T]) -> T:
        engine = self._engine.execution_options(purpose=purpose)

        def attempt() -> T:
            with engine.begin() as connection:
                return work(connection)

        retrying = Retrying(
            stop=stop_after_delay(self._retry_seconds),
            wait=wait_random_exponential(0.1, max=2.0),
            retry=retry_if_exception(is_transient),
            before_sleep=self._announce,
            reraise=True,
        )
        try:
            return retrying(attempt)
        except IntegrityError:
            raise
        except DBAPIError as error:
            raise BackendError(explain(error, self.url)) from error
        except ValueError as error:  # a document or number in a row that does not parse
            first = str(error).splitlines()[0]
            raise BackendError(f"{self.location} holds a damaged row: {first}") from error

    def _announce(self, attempt: RetryCallState) -> None:
        if attempt.attempt_number == 1:
            seconds = f"{self._retry_seconds:.0f} s"
            logger.warning("%s does not answer; trying again for %s", self.location, seconds)


def is_transient(error: BaseException) -> bool:
    """Whether the same transaction may succeed a little later."""
    if not isinstance(error, OperationalError | InterfaceError):
        return False
    if name := _sqlite_error_name(error):
        return name.startswith(_SQLITE_TRANSIENT)
    if state := getattr(error.orig, "sqlstate", None):
        return str(state).startswith(_POSTGRESQL_TRANSIENT)
    return not any(text in str(error.orig) for text in _POSTGRESQL_PERMANENT_CONNECT)


def names_missing_parent(error: IntegrityError) -> bool:
    """Whether a foreign key was violated: the row that should own the new one is not there."""
    foreign_key = ("SQLITE_CONSTRAINT_FOREIGNKEY", "23503")
    return (_sqlite_error_name(error) or getattr(error.orig, "sqlstate", "")) in foreign_key


def explain(error: DBAPIError, url: URL) -> str:
    """One line that names the database and what is wrong with it."""
    name = _sqlite_error_name(error)
    for prefix, meaning in _SQLITE_MEANING.items():
        if name.startswith(prefix):
            return f"{location(url)} {meaning}"
    detail = " ".join(str(error.orig).split())[:300]
    if url.password:
        detail = detail.replace(str(url.password), "***")
    return f"{location(url)}: {detail}"


def _sqlite_error_name(error: DBAPIError) -> str:
    return getattr(error.orig, "sqlite_errorname", "")


def _create_engine(url: URL, busy_seconds: float) -> Engine:
    if url.get_backend_name() == "postgresql":
        url = url.set(drivername="postgresql+psycopg")
        defaults = {k: v for k, v in _POSTGRESQL_CONNECT.items() if k not in url.query}
        return create_engine(
            url, connect_args=defaults, pool_pre_ping=True, pool_size=2, max_overflow=3
        )
    folder = Path(str(url.database)).parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BackendError(
            f"{location(url)}: cannot create its folder: {error.strerror}"
        ) from error
    engine = create_engine(url, connect_args={"timeout": busy_seconds})
    file = Path(str(url.database)).absolute()
    opened: list[tuple[int, int] | None] = []

    def require_same(*_: object) -> None:
        """An open file that was removed takes all that is written, and it is lost at the end."""
        if opened and _identity(file) != opened[0]:
            raise BackendError(f"{location(url)} was removed or replaced while it was in use")

    def set_up(connection: Any, _record: Any) -> None:
        connection.isolation_level = None  # transactions are ours to begin
        for statement in _SQLITE_SETUP:
            connection.execute(statement)
        if not opened:
            opened.append(_identity(file))

    event.listen(engine, "do_connect", require_same)
    event.listen(engine, "connect", set_up)
    event.listen(engine, "checkout", require_same)
    event.listen(engine, "begin", _begin_sqlite)
    return engine


def _identity(file: Path) -> tuple[int, int] | None:
    """What tells a file from another one of the same name; None when there is none."""
    try:
        about = file.stat()
    except OSError:
        return None
    return about.st_dev, about.st_ino


def _begin_sqlite(connection: Connection) -> None:
    purpose = connection.get_execution_options().get("purpose", "read")
    for statement in _SQLITE_BEGIN[purpose]:
        connection.exec_driver_sql(statement)
