"""Upgrades: from every released schema, beside other people's tables, from any older version."""

import sqlite3
from pathlib import Path

import optuna
import pytest
from alembic import command
from alembic.script import ScriptDirectory
from sqlalchemy import create_engine, inspect, text

from tests.store.samples import make_study, make_trial
from tuner.errors import BackendError
from tuner.store.engine import Database
from tuner.store.models import PREFIX, REVISION, VERSION_TABLE, Base
from tuner.store.schema import alembic_config, check, upgrade
from tuner.store.sql import open_store

RELEASED = sorted((Path(__file__).parent / "schemas").glob("*.sql"))


def table_names(url: str) -> set[str]:
    engine = create_engine(url)
    names = set(inspect(engine).get_table_names())
    engine.dispose()
    return names


def execute(url: str, *statements: str) -> None:
    engine = create_engine(url)
    with engine.begin() as connection:
        for statement in statements:
            connection.execute(text(statement))
    engine.dispose()


def statements(script: str) -> list[str]:
    return [part.replace(":", r"\:") for part in script.split(";\n") if part.strip()]


def described(url: str) -> dict[str, list[object]]:
    """All that a database can tell of its tables."""
    engine = create_engine(url.replace("postgresql:", "postgresql+psycopg:"))
    seen = inspect(engine)
    kinds = ("columns", "pk_constraint", "foreign_keys", "indexes", "unique_constraints")
    tables = {
        name: [repr(getattr(seen, f"get_{kind}")(name)) for kind in (*kinds, "check_constraints")]
        for name in sorted(seen.get_table_names())
    }
    engine.dispose()
    return tables


def test_migrations_make_what_the_models_say(url: str) -> None:
    """A new database has its tables from the models; all migrations together make the same."""
    database = Database(url)
    database.migrate(lambda connection: command.upgrade(alembic_config(connection), "head"))
    database.close()
    migrated = described(url)
    assert check(url).ok
    execute(url, *(f"DROP TABLE {table}" for table in reversed(Base.metadata.sorted_tables)))
    execute(url, f"DROP TABLE {VERSION_TABLE}")
    assert described(url) == {}
    upgrade(url)
    assert described(url) == migrated


def test_a_new_database_is_at_this_version(url: str) -> None:
    assert check(url).revision is None
    assert not check(url).ok
    report = upgrade(url)
    assert (report.revision, report.head, report.drift) == (REVISION, REVISION, [])
    assert report.ok
    assert table_names(url) == {*Base.metadata.tables, VERSION_TABLE}
    assert all(name.startswith(PREFIX) for name in table_names(url))
    assert upgrade(url) == report


def test_a_check_makes_no_file(tmp_path: Path) -> None:
    report = check(f"sqlite:///{tmp_path}/sub/tuner.db")
    assert (report.revision, report.ok) == (None, False)
    assert list(tmp_path.iterdir()) == []


def test_drift_is_found(url: str) -> None:
    upgrade(url)
    execute(url, "ALTER TABLE tuner_study ADD COLUMN mood TEXT", "DROP TABLE tuner_lr_curve")
    drift = check(url).drift
    assert len(drift) == 2
    assert "tuner_lr_curve" in drift[0]
    assert "mood" in drift[1]


@pytest.mark.parametrize("optuna_first", [True, False])
def test_optunas_tables_in_the_same_database_are_left_alone(url: str, optuna_first: bool) -> None:
    def use_optuna() -> None:
        optuna_url = url.replace("postgresql:", "postgresql+psycopg:")
        storage = optuna.storages.RDBStorage(optuna_url)
        study = optuna.create_study(storage=storage, study_name="theirs", load_if_exists=True)
        study.add_trial(optuna.trial.create_trial(value=1.0))
        storage.engine.dispose()

    steps = [use_optuna, lambda: upgrade(url)]
    for step in steps if optuna_first else reversed(steps):
        step()
    assert upgrade(url).drift == []
    use_optuna()
    store = open_store(url)
    store.create_study(make_study())
    assert {"studies", "trials", "alembic_version", "tuner_study"} <= table_names(url)
    store.close()


def test_a_database_of_a_newer_version_is_refused(url: str) -> None:
    upgrade(url)
    execute(url, f"UPDATE {VERSION_TABLE} SET version_num = '9999'")
    with pytest.raises(BackendError, match="is at schema 9999, newer than schema"):
        open_store(url)
    assert check(url).revision == "9999"


def test_a_failed_upgrade_changes_nothing(url: str) -> None:
    execute(url, "CREATE TABLE tuner_lease (x INTEGER)")
    with pytest.raises(BackendError, match="already exists"):
        open_store(url)
    assert table_names(url) == {"tuner_lease"}


def test_every_migration_has_a_released_schema(tmp_path: Path) -> None:
    database = Database(f"sqlite:///{tmp_path}/x.db")
    scripts = database.read(lambda c: ScriptDirectory.from_config(alembic_config(c)))
    assert scripts.get_heads() == [REVISION]
    assert [path.stem for path in RELEASED] == sorted(s.revision for s in scripts.walk_revisions())
    database.close()


@pytest.mark.parametrize("released", RELEASED, ids=lambda path: path.stem)
def test_a_released_schema_upgrades_and_reads(url: str, released: Path) -> None:
    dialect = "sqlite" if url.startswith("sqlite") else "postgresql"
    sections = released.read_text().split("-- dialect: ")[1:]
    scripts = dict(section.split("\n", 1) for section in sections)
    execute(url, *statements(scripts[dialect]))
    store = open_store(url)
    assert check(url).ok
    study = store.get_study("released")
    assert study.spec["study"] == {"name": "released", "metric": "acc"}
    assert study.created_at.isoformat() == "2026-01-02T03:04:05.678901+00:00"
    trial = store.get_trial("released", 0)
    assert (trial.state, trial.value, trial.configuration.optimizer) == ("completed", 0.5, "sgd")
    assert str(trial.metrics["loss"]) == "nan"
    assert [(e.step, e.lr) for e in store.evaluations("released", 0)] == [(10, 0.1), (20, 0.05)]
    assert store.step_lrs("released", 0) == [0.1, 0.05]
    assert store.lr_curves("released")[0].points == [(1e-5, 2.0), (0.1, float("inf"))]
    held = store.get_lease("released")
    assert held is not None
    assert held.owner == "somebody"
    store.save_trial("released", make_trial(1))
    store.close()


def test_a_new_migration_can_be_written(tmp_path: Path) -> None:
    """The template renders a module that runs; a developer's next migration starts from it."""
    database = Database(f"sqlite:///{tmp_path}/x.db")

    def write(connection: object) -> None:
        config = alembic_config(connection)  # type: ignore[arg-type]
        config.set_main_option("version_locations", str(tmp_path))
        config.stdout = (tmp_path / "out").open("w")
        command.revision(config, "Everything", autogenerate=True, rev_id="0001")
        config.stdout.close()

    database.migrate(write)
    database.close()
    source = (tmp_path / "0001_everything.py").read_text()
    compile(source, "0001_everything.py", "exec")
    assert "sa.Double()" in source
    assert "tuner.store" not in source


def test_sqlite_upgrades_do_not_cascade(tmp_path: Path) -> None:
    """A rebuilt table is dropped and made again, which must not delete what refers to it."""
    path = tmp_path / "x.db"
    store = open_store(f"sqlite:///{path}")
    store.create_study(make_study())
    store.save_trial("digits", make_trial(0))
    store.database.migrate(lambda c: c.exec_driver_sql("DELETE FROM tuner_study"))
    store.close()
    with sqlite3.connect(path) as connection:
        assert connection.execute("SELECT count(*) FROM tuner_trial").fetchone() == (1,)
    connection.close()
