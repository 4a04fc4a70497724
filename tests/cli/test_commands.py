"""What each command does and prints; the numbers behind it are tested with the library."""

import sqlite3
from pathlib import Path

import pytest

import optimizers
from tests.cli.conftest import Tuner
from tuner.spec import load_spec


def test_db_is_made_checked_and_found_damaged(tuner: Tuner, tmp_path: Path) -> None:
    before = tuner("db", "check", "--json")
    assert (before.code, before.json["revision"], before.json["ok"]) == (4, None, False)
    assert "run `tuner db upgrade`" in before.err
    made = tuner("db", "upgrade", "--json").json
    assert tuner("db", "upgrade").code == 0
    after = tuner("db", "check", "--json")
    assert (after.code, after.json["revision"]) == (0, made["head"])
    with sqlite3.connect(tmp_path / ".tuner" / "tuner.db") as database:
        database.execute("DROP TABLE tuner_lease")
    damaged = tuner("db", "check", "--json")
    assert (damaged.code, len(damaged.json["drift"])) == (4, 1)


@pytest.mark.parametrize("command", [["db", "check"], ["db", "upgrade"], ["doctor"]])
def test_what_is_no_database_is_one_line_and_exit_code_4(
    tuner: Tuner, tmp_path: Path, command: list[str]
) -> None:
    (tmp_path / "notes.txt").write_text("not a database " * 1000)
    result = tuner("--storage", "sqlite:///notes.txt", *command)
    assert result.code == 4
    errors = [line for line in result.err.splitlines() if line.startswith("tuner: error: ")]
    assert len(errors) == 1
    assert "notes.txt" in errors[0]


def test_devices(tuner: Tuner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNER_FAKE_DEVICES", "3")
    slots = tuner("devices", "--json").json
    assert [slot["visible_device"] for slot in slots] == [f"GPU-fake-{n}" for n in range(3)]
    assert [line.split()[0] for line in tuner("devices").out.splitlines()] == ["slot", *"012"]
    assert len(tuner("devices", "--slots", "2", "--json").json) == 2


def test_doctor_finds_everything_in_order(tuner: Tuner) -> None:
    tuner("db", "upgrade")
    tuner("init")
    result = tuner("doctor", "--task", "mytask:build", "--json")
    assert result.code == 0, result.err
    assert [finding["check"] for finding in result.json if finding["ok"]] == [
        *("versions", "database", "mlflow", "devices", "task")
    ]
    assert "2000 training and 500 validation examples" in result.json[-1]["detail"]


@pytest.mark.parametrize(
    ("arguments", "check", "code", "says"),
    [
        (["doctor", "--task", "nowhere:build"], "task", 2, "nowhere"),
        (["--mlflow-uri", "http://ann:pw@127.0.0.1:1", "doctor"], "mlflow", 4, "ann:***@127.0.0.1"),
    ],
)
def test_doctor_names_what_is_wrong(
    tuner: Tuner, arguments: list[str], check: str, code: int, says: str
) -> None:
    result = tuner(*arguments, "--json")
    [problem] = [finding for finding in result.json if not finding["ok"]]
    assert (result.code, problem["check"]) == (code, check)
    assert says in problem["detail"]
    assert "pw@" not in result.out + result.err


def test_init_writes_a_study_that_is_valid_and_never_overwrites(
    tuner: Tuner, tmp_path: Path
) -> None:
    assert tuner("init", "speech").out.split() == ["speech.py", "speech.toml"]
    assert load_spec(tmp_path / "speech.toml").study.task == "speech:build"
    (tmp_path / "speech.py").write_text("mine")
    (tmp_path / "speech.toml").unlink()
    again = tuner("init", "speech")
    assert (again.code, (tmp_path / "speech.py").read_text()) == (2, "mine")
    assert not (tmp_path / "speech.toml").exists()
    assert tuner("init", "no-name").code == 2


def test_optimizers_list_has_a_row_for_each(tuner: Tuner) -> None:
    rows = tuner("optimizers", "list", "--json").json
    assert [row["name"] for row in rows] == optimizers.names()
    assert {row["name"]: row["memory"] for row in rows}["adam"] == 2
    printed = tuner("optimizers", "list").out.splitlines()
    assert [line.split()[0] for line in printed] == ["name", *optimizers.names()]


@pytest.mark.parametrize("name", optimizers.names())
def test_optimizers_show(tuner: Tuner, name: str) -> None:
    facts = tuner("optimizers", "show", name, "--json").json
    rule = optimizers.get_rule(name)
    assert [hyper["name"] for hyper in facts["hyperparameters"]] == list(rule.hypers)
    text = tuner("optimizers", "show", name).out
    assert all(hyper in text for hyper in (*rule.hypers, *rule.options))


def test_config_schema_names_the_sections(tuner: Tuner) -> None:
    schema = tuner("config", "schema").json
    assert {"study", "budget", "search", "arms"} <= schema["properties"].keys()


def test_mlflow_ui_prints_its_command(tuner: Tuner, tmp_path: Path) -> None:
    local = tuner("mlflow", "ui", "--print").out
    assert f"sqlite:///{tmp_path}/.tuner/mlflow.db" in local
    remote = tuner("--mlflow-uri", "http://ann:pw@example.org", "mlflow", "ui", "--print").out
    assert "http://example.org" in remote
    assert "pw" not in remote
    assert tuner("--mlflow-uri", "none", "mlflow", "ui").code == 2


def test_mlflow_sync_of_an_unknown_study(tuner: Tuner) -> None:
    result = tuner("mlflow", "sync", "digits")
    assert (result.code, result.out) == (2, "")
    assert "digits" in result.err
