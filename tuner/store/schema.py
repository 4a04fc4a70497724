"""Bringing a database to the schema of this version, and checking that it is there.

Alembic takes half a second to import, so it is imported only when there is something to do.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy import (
    Column,
    Connection,
    MetaData,
    PrimaryKeyConstraint,
    String,
    Table,
    column,
    func,
    inspect,
    select,
    table,
)

from tuner.errors import BackendError
from tuner.records import Record
from tuner.store.engine import RETRY_SECONDS, Database, location, parse_url
from tuner.store.models import PREFIX, REVISION, VERSION_TABLE, Base

if TYPE_CHECKING:
    from alembic.config import Config

_MIGRATIONS = Path(__file__).parent / "migrations"
_ADVISORY_LOCK = 7_468_110_611  # any number, as long as every version of the tuner uses the same


class SchemaReport(Record):
    """Where a database stands; `ok` when this version can work with it."""

    location: str
    revision: str | None  # None: no tables yet
    head: str
    drift: list[str]  # differences between the tables and what this version expects

    @property
    def ok(self) -> bool:
        """Whether revision and tables are as expected."""
        return self.revision == self.head and not self.drift


def upgrade(url: str, retry_seconds: float = RETRY_SECONDS) -> SchemaReport:
    """Create or upgrade the tables; safe to call from many processes at once.

    Raises `BackendError` when the database was written by a newer version.
    """
    database = Database(url, retry_seconds)
    try:
        ensure_current(database)
        return _report(database)
    finally:
        database.close()


def check(url: str, retry_seconds: float = RETRY_SECONDS) -> SchemaReport:
    """Compare the database with this version, changing nothing; raises `BackendError`."""
    parsed = parse_url(url)
    if parsed.get_backend_name() == "sqlite" and not Path(str(parsed.database)).exists():
        return SchemaReport(location=location(parsed), revision=None, head=REVISION, drift=[])
    database = Database(url, retry_seconds)
    try:
        return _report(database)
    finally:
        database.close()


def ensure_current(database: Database) -> None:
    """Upgrade unless the tables are at this version's revision already."""
    if database.read(stored_revision) != REVISION:
        database.migrate(lambda connection: _upgrade(connection, database.location))


def stored_revision(connection: Connection) -> str | None:
    """The revision that the database says it is at; None when it has no tables of ours."""
    if not inspect(connection).has_table(VERSION_TABLE):
        return None
    versions = table(VERSION_TABLE, column("version_num"))
    return connection.execute(select(versions.c.version_num)).scalar()


def include_name(name: str | None, kind: str, _parents: Any) -> bool:
    """Alembic's filter: tables of Optuna, MLflow or anybody else are not ours to change."""
    return kind != "table" or (name or "").startswith(PREFIX)


def alembic_config(connection: Connection) -> Config:
    """Alembic's configuration for one connection; there is no alembic.ini."""
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(_MIGRATIONS).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    return config


def create_tables(connection: Connection) -> None:
    """Make all tables as this version has them, and note its revision as Alembic would.

    A new database gets them at once; Alembic alone would take a quarter of a second to import.
    """
    Base.metadata.create_all(connection, checkfirst=False)
    key = PrimaryKeyConstraint("version_num", name=f"{VERSION_TABLE}_pkc")
    versions = Table(VERSION_TABLE, MetaData(), Column("version_num", String(32)), key)
    versions.create(connection)
    connection.execute(versions.insert().values(version_num=REVISION))


def _upgrade(connection: Connection, location: str) -> None:
    # SQLite holds the write lock since BEGIN IMMEDIATE; PostgreSQL needs a lock of its own.
    if connection.dialect.name == "postgresql":
        connection.execute(select(func.pg_advisory_xact_lock(_ADVISORY_LOCK)))
    revision = stored_revision(connection)
    if revision is None:
        create_tables(connection)
        return

    from alembic import command
    from alembic.script import ScriptDirectory

    config = alembic_config(connection)
    known = {script.revision for script in ScriptDirectory.from_config(config).walk_revisions()}
    if revision not in known:
        raise BackendError(
            f"{location} is at schema {revision}, newer than schema {REVISION} of this version: "
            "upgrade the optimizer-tuner package"
        )
    command.upgrade(config, "head")


def _report(database: Database) -> SchemaReport:
    revision = database.read(stored_revision)
    return SchemaReport(
        location=database.location,
        revision=revision,
        head=REVISION,
        drift=database.read(_drift) if revision == REVISION else [],
    )


def _drift(connection: Connection) -> list[str]:
    from alembic.autogenerate import compare_metadata
    from alembic.migration import MigrationContext

    context = MigrationContext.configure(
        connection,
        opts={
            "version_table": VERSION_TABLE,
            "include_name": include_name,
            "compare_type": True,
        },
    )
    return [_describe(difference) for difference in compare_metadata(context, Base.metadata)]


def _describe(difference: Any) -> str:
    if isinstance(difference, list):  # the changes of one column
        return "; ".join(_describe(change) for change in difference)
    return " ".join(str(part) for part in difference if part is not None)
