"""`tuner study` and `tuner trial`: what they print and how they end."""

import csv
import io
import json
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import optimizers
from tests.cli.conftest import Result, Tuner
from tests.jobs import TASKS

STUDY = """
[study]
task = "tiny:build"
metric = "acc"
direction = "maximize"
preset = "quick"

[budget]
max_steps = 12
evaluations = 3
trials_per_arm = 3
extend_trials = 0
confirm_top = 1
confirm_seeds = 2
decide_seeds = 2
lr_range_steps = 40

[run]
slots = 1

[[arms]]
optimizer = "adamw"

[[arms]]
optimizer = "sgd"
schedule = "cosine"
"""
LOCAL = ("--mlflow-uri", "none")
ARM = ["name", "optimizer", "schedule", "params", "seeds", "scores", "mean", "ci_low", "ci_high"]
TRIAL = [
    *("number", "arm", "stage", "seed", "state", "params", "value", "device", "attempts"),
    *("started_at", "finished_at", "failure"),
]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home that holds one finished study, made by a real process without a terminal."""
    folder = tmp_path_factory.mktemp("study")
    prepare(folder)
    tuner = str(Path(sys.executable).parent / "tuner")
    done = subprocess.run(
        [tuner, *LOCAL, "study", "start", "small.toml", "--json"],
        cwd=folder,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["study"] == "small"
    return folder / ".tuner"


def prepare(folder: Path) -> None:
    """The study file and its task."""
    (folder / "small.toml").write_text(STUDY)
    shutil.copy(TASKS / "tiny.py", folder)


@pytest.fixture
def ask(tuner: Tuner, home: Path) -> Tuner:
    """Run a command on that home."""

    def call(*arguments: str) -> Result:
        return tuner("--home", str(home), *LOCAL, *arguments)

    return call


def test_list(ask: Tuner) -> None:
    [study] = ask("study", "list", "--json").json
    assert (study["name"], study["state"], study["task"]) == ("small", "completed", "tiny:build")
    assert "small" in ask("study", "list").out


def test_show(ask: Tuner) -> None:
    study = ask("study", "show", "small", "--json").json
    assert study["spec"]["budget"]["max_steps"] == 12
    assert {stage["stage"] for stage in study["stages"]} >= {"defaults", "explore", "confirm"}
    assert all(s["finished"] == s["planned"] for s in study["stages"])
    assert (study["stage"], study["left"], study["time_left"]) == (None, None, None)
    for arm in study["arms"]:
        assert arm["finished"] == arm["expected"]
        assert arm["best"]["fresh"]
        assert arm["best"]["low"] <= arm["best"]["value"] <= arm["best"]["high"]
    assert study["calibration"]["runs"] == 2 + 2 * (2 + 2)  # each arm's confirmed and decided
    shown = ask("study", "show", "small")
    assert shown.code == 0
    assert "sgd-cosine" in shown.out


def test_what_a_range_test_is_not(tuner: Tuner, tmp_path: Path) -> None:
    """It has trials but no arms: whatever needs arms says so in one line."""
    shutil.copy(TASKS / "tiny.py", tmp_path)
    assert tuner(*LOCAL, "lr-find", "tiny:build", "--quick").code == 0
    [study] = tuner(*LOCAL, "study", "list", "--json").json
    for command in ("resume", "show", "compare", "report", "code"):
        refused = tuner(*LOCAL, "study", command, study["name"])
        assert (refused.code, refused.err.count("\n")) == (2, 1), command
        assert "is a range test" in refused.err
    assert "is a range test" in tuner(*LOCAL, "trial", "rerun", study["name"], "0").err


def test_a_report_that_cannot_be_written(ask: Tuner, tmp_path: Path) -> None:
    refused = ask("study", "report", "small", "-o", str(tmp_path))
    assert (refused.code, refused.err.count("\n")) == (2, 1)
    assert f"{tmp_path}: Is a directory" in refused.err


def test_show_says_why_trials_failed(tuner: Tuner, tmp_path: Path) -> None:
    (tmp_path / "small.toml").write_text(STUDY.replace("tiny:build", "faulty:nan_in_training_data"))
    for task in ("tiny.py", "faulty.py"):
        shutil.copy(TASKS / task, tmp_path)
    stopped = tuner(*LOCAL, "study", "start", "small.toml")
    assert stopped.code == 1
    reason = "a training loss is nan with the initial weights, too"
    assert f"stopped: 3 trials failed with: {reason}" in stopped.err
    assert f"3 trials: user_error, the last: {reason}" in tuner("study", "show", "small").err


def test_compare(ask: Tuner) -> None:
    comparison = ask("study", "compare", "small", "--json").json
    assert (comparison["study"], comparison["metric"]) == ("small", "acc")
    assert comparison["direction"] == "maximize"
    for arm in comparison["arms"]:
        assert {*ARM, "p_best", "verdict"} <= arm.keys()
        assert len(arm["scores"]) == len(arm["seeds"]) >= 2
    text = ask("study", "compare", "small").out
    assert comparison["answer"].split()[0] in text


def test_compare_tells_how_soon(ask: Tuner) -> None:
    found = ask("study", "compare", "small", "--json", "--target", "0.2").json["targets"]
    assert [t["cost"] for t in found] == ["steps", "examples", "seconds"]
    assert found[0]["target"] == 0.2
    assert found[0]["baseline"] == "adamw-constant"
    assert {a["name"] for a in found[0]["arms"]} == {"adamw-constant", "sgd-cosine"}
    text = ask("study", "compare", "small", "--cost", "steps", "--baseline", "sgd-cosine").out
    assert "speed-up over sgd-cosine" in text
    assert "P(row beats column)" in text
    nowhere = ask("study", "compare", "small", "--target", "nan")
    assert (nowhere.code, nowhere.out) == (2, "")
    assert "target nan: allowed: a finite number" in nowhere.err
    wrong = ask("study", "compare", "small", "--baseline", "lion")
    assert (wrong.code, wrong.out) == (2, "")
    assert set(wrong.err.strip().partition("allowed: ")[2].split(", ")) == {
        "adamw-constant",
        "sgd-cosine",
    }


@pytest.mark.parametrize(
    ("factor", "says"),
    [
        ("schedule", "no two arms differ in schedule alone"),
        ("optimizer", "no two arms differ in optimizer alone"),
        ("clip", "Every arm has the same clip (no clip)"),
        ("batch_size", "a guide to the cost, not a verdict on the batch size"),
    ],
)
def test_compare_by_one_factor(ask: Tuner, factor: str, says: str) -> None:
    shown = ask("study", "compare", "small", "--by", factor)
    assert shown.code == 0, shown.err
    assert says in " ".join(shown.out.split())
    found = ask("study", "compare", "small", "--by", factor, "--json").json
    assert (found["study"], found["factor"], found["metric"]) == ("small", factor, "acc")
    assert found["answer"]


@pytest.mark.slow
def test_compare_several_studies(ask: Tuner, tmp_path: Path) -> None:
    # The same task under another metric, with an arm more and one under a name of its own.
    (tmp_path / "other.toml").write_text(
        STUDY.replace('"acc"', '"loss"')
        .replace("maximize", "minimize")
        .replace('[[arms]]\noptimizer = "sgd"', '[[arms]]\nname = "mine"\noptimizer = "sgd"')
        + '\n[[arms]]\noptimizer = "lion"\n'
    )
    shutil.copy(TASKS / "tiny.py", tmp_path)
    started = ask("study", "start", "other.toml", "--json")
    assert started.code == 0, started.err
    found = ask("study", "compare", "small", "other", "--cost", "steps", "--json").json
    assert found["studies"] == ["small", "other"]
    assert {a["name"] for a in found["arms"]} == {"adamw-constant", "sgd-cosine"}
    assert found["left_out"] == ["lion-constant"]
    shown = ask("study", "compare", "small", "other")
    assert "2 studies of 1 task" in shown.out
    assert "other: loss" in shown.out
    assert ask("study", "report", "small", "other", "-o", "both.html").code == 0
    assert "sgd-cosine" in (tmp_path / "both.html").read_text()
    (tmp_path / "again.toml").write_text(STUDY)
    again = ask("study", "start", "again.toml", "-S", "study.name=again", "--json")
    assert again.code == 0, again.err
    for arguments, says in (
        (("small", "small"), "given twice"),
        (("small", "again"), "would count twice"),
        (("small", "other", "--by", "clip"), "--by is for one study"),
        (("small", "other", "--target", "1"), "--target is for one study"),
        (("small", "other", "--baseline", "lion-constant"), "allowed: adamw-constant"),
        (("small", "othr"), "did you mean other?"),
    ):
        wrong = ask("study", "compare", *arguments)
        assert (wrong.code, wrong.out) == (2, "")
        assert says in wrong.err
    for name in ("other", "again"):
        assert ask("study", "delete", name, "--yes").code == 0


def test_trials(ask: Tuner) -> None:
    trials = ask("trial", "list", "small", "--json").json
    assert all(list(trial) == TRIAL for trial in trials)
    assert [trial["number"] for trial in trials] == sorted(trial["number"] for trial in trials)
    explored = ask(
        "trial", "list", "small", "--stage", "explore", "--arm", "adamw-constant", "--json"
    )
    assert len(explored.json) == 3
    for option, given, allowed in (
        ("--stage", "decided", "decide"),
        ("--arm", "sgd", "sgd-cosine"),
    ):
        wrong = ask("trial", "list", "small", option, given)
        assert (wrong.code, wrong.out) == (2, "")
        assert f"{option} {given}: allowed: " in wrong.err
        assert allowed in wrong.err
    lines = ask("trial", "list", "small").out.splitlines()
    assert len(lines) == 1 + len(trials)


def test_one_trial(ask: Tuner) -> None:
    listed = ask("trial", "list", "small", "--stage", "calibrate", "--json").json
    number = str(listed[0]["number"])
    trial = ask("trial", "show", "small", number, "--json").json
    assert trial["stage"] == "calibrate"
    assert [evaluation["step"] for evaluation in trial["evaluations"]] == [4, 8, 12]
    assert len(trial["lrs"]) == 12
    assert {"code", "packages", "host", "task"} <= trial["provenance"].keys()
    assert "adamw" in ask("trial", "show", "small", number).out


def test_export(ask: Tuner) -> None:
    exported = ask("study", "export", "small").out
    rows = list(csv.DictReader(io.StringIO(exported)))
    assert len(rows) == len(ask("trial", "list", "small", "--json").json)
    as_json = ask("study", "export", "small", "--json").json
    assert as_json == ask("study", "export", "small", "--format", "json").json
    assert len(as_json) == len(rows)


def test_code_trains_with_what_was_found(ask: Tuner, home: Path) -> None:
    printed = ask("study", "code", "small", "--arm", "sgd-cosine")
    found = ask("study", "code", "small", "--arm", "sgd-cosine", "--json").json
    model = torch.nn.Linear(3, 2)
    names: dict[str, Any] = {"model": model}
    exec(printed.out, names)
    assert names["batch_size"] == found["configuration"]["batch_size"]
    assert names["total_steps"] == found["steps"]
    optimizer, arguments = names["optimizer"], found["configuration"]["optimizer_args"]
    assert isinstance(optimizer, optimizers.SGD)
    assert arguments["lr"] > 0
    for group in optimizer.param_groups:
        assert group["lr"] == pytest.approx(arguments["lr"])  # cosine starts at its peak
    leader = ask("study", "compare", "small", "--json").json["arms"][0]["name"]
    assert ask("study", "code", "small").out.startswith(f"# study small: {leader}, ")
    wrong = ask("study", "code", "small", "--arm", "lion")
    assert (wrong.code, wrong.out) == (2, "")
    assert "adamw-constant" in wrong.err


def test_report(ask: Tuner, tmp_path: Path) -> None:
    assert ask("study", "report", "small", "-o", "out.html").code == 0
    assert "sgd-cosine" in (tmp_path / "out.html").read_text()


@pytest.mark.parametrize(
    "command",
    [
        *(["study", name, "smal"] for name in ("show", "compare", "report", "export", "resume")),
        *(["study", "stop", "smal"], ["study", "delete", "smal", "--yes"]),
        *(
            ["trial", "list", "smal"],
            ["trial", "show", "smal", "0"],
            ["trial", "rerun", "smal", "0"],
        ),
    ],
    ids=" ".join,
)
def test_an_unknown_study_is_answered_with_a_near_miss(ask: Tuner, command: list[str]) -> None:
    result = ask(*command)
    assert (result.code, result.out) == (2, "")
    assert "did you mean small?" in result.err


def test_an_unknown_trial(ask: Tuner) -> None:
    result = ask("trial", "show", "small", "999")
    assert (result.code, result.out) == (2, "")
    assert "999" in result.err


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("study.metrik=acc", "metrik"),
        ("budget.max_steps=none", "budget.max_steps"),
        ("search.lr=[1, 0.1]", "search.lr"),
        ("study.task=tiny", "study.task"),
        ("nonsense", "nonsense"),
    ],
)
def test_a_bad_study_creates_nothing(
    tuner: Tuner, tmp_path: Path, override: str, says: str
) -> None:
    prepare(tmp_path)
    result = tuner("study", "start", "small.toml", "-S", override)
    assert (result.code, result.out) == (2, "")
    assert says in result.err
    assert not (tmp_path / ".tuner").exists()


def test_a_dry_run_creates_nothing(tuner: Tuner, tmp_path: Path) -> None:
    prepare(tmp_path)
    plan = tuner("study", "start", "small.toml", "--dry-run", "--json")
    assert plan.code == 0, plan.err
    assert [arm["name"] for arm in plan.json["arms"]] == ["adamw-constant", "sgd-cosine"]
    assert plan.json["total_trials"] == sum(plan.json["trials"].values())
    assert not (tmp_path / ".tuner" / "tuner.db").exists()


def test_a_study_starts_from_another(ask: Tuner, tmp_path: Path) -> None:
    prepare(tmp_path)
    start = ("study", "start", "small.toml", "-S", "study.name=next", "--from")
    plan = ask(*start, "small", "--dry-run", "--json")
    assert plan.code == 0, plan.err
    assert plan.json["trials"]["lr-range"] == 0
    assert {arm["from_study"] for arm in plan.json["arms"]} == {"small"}
    unknown = ask(*start, "smal")
    assert (unknown.code, unknown.out) == (2, "")
    assert "did you mean small?" in unknown.err


def test_without_a_database_there_is_nothing_to_start_from(tuner: Tuner, tmp_path: Path) -> None:
    prepare(tmp_path)
    result = tuner("study", "start", "small.toml", "--from", "old")
    assert (result.code, result.out) == (2, "")
    assert "--from old: there is no study yet" in result.err
    assert not (tmp_path / ".tuner").exists()


def test_a_name_that_is_taken(ask: Tuner, home: Path, tmp_path: Path) -> None:
    prepare(tmp_path)
    taken = ask("study", "start", "small.toml")
    assert (taken.code, taken.out) == (2, "")
    assert "small" in taken.err
    assert f"`tuner --home {home} --mlflow-uri none study resume small`" in taken.err


@pytest.mark.slow
def test_a_study_is_replaced(ask: Tuner, home: Path, tmp_path: Path) -> None:
    shutil.copytree(home, tmp_path / "copy")
    prepare(tmp_path)
    replaced = ask("--home", "copy", "study", "start", "small.toml", "--replace", "--json")
    assert replaced.code == 0, replaced.err
    assert replaced.json["study"] == "small"


def test_delete_asks_first(ask: Tuner, home: Path, tmp_path: Path) -> None:
    shutil.copytree(home, tmp_path / "copy")
    assert ask("--home", "copy", "study", "delete", "small").code == 1
    assert ask("--home", "copy", "study", "delete", "small", "--yes").code == 0
    assert ask("--home", "copy", "study", "list", "--json").json == []
    with sqlite3.connect(tmp_path / "copy" / "tuner.db") as database:
        assert database.execute("SELECT count(*) FROM tuner_trial").fetchone() == (0,)
