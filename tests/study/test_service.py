"""Whole studies with real worker processes: failures, faults, stops, kills and resumes."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.jobs import TASKS
from tests.study.specs import ADAMW, SGD, study_data, study_spec, toml_of
from tuner import service
from tuner.errors import NoCompletedTrialError, TaskError, TunerError, UsageError
from tuner.lease import take_lease
from tuner.paths import Home
from tuner.progress import LineReporter
from tuner.records import Trial
from tuner.service import Environment
from tuner.store.base import Lease
from tuner.store.sql import SqlStore, open_store

QUICK: dict[str, Any] = {
    "budget": {
        "max_steps": 10,
        "evaluations": 2,
        "trials_per_arm": 2,
        "confirm_top": 1,
        "confirm_seeds": 1,
        "decide_seeds": 2,
        "lr_range_steps": 30,
    },
    "search": {"batch_size": [8, 16], "lr": [1e-3, 1e-1]},
    "run": {"slots": 1},
    "arms": [ADAMW],
}


@pytest.fixture
def env(tmp_path: Path) -> Iterator[Environment]:
    home = Home(tmp_path / "home")
    store = open_store(home.storage_url)
    yield Environment(store, home, (str(TASKS),), LineReporter)
    store.close()


def same(trial: Trial) -> tuple[Any, ...]:
    """What must not depend on how often a study was interrupted."""
    return (trial.number, trial.arm, trial.stage, trial.seed, trial.state, trial.point, trial.value)


def states(env: Environment) -> Counter[str]:
    """How many trials of the study are in each state; none before it is created."""
    known = [study.name for study in env.store.list_studies()]
    return Counter(t.state for t in env.store.trials("small")) if known else Counter()


def test_a_study_from_start_to_answer(env: Environment, capfd: pytest.CaptureFixture[str]) -> None:
    spec = study_spec(run={"slots": 2})
    result = service.start(spec, env)
    assert result.study.state == "completed"
    assert result.study.answer == result.comparison.answer != ""
    assert result.report.read_text().startswith("<!doctype html>")
    trials = env.store.trials("small")
    assert [t.number for t in trials] == list(range(len(trials)))
    assert all(t.state in ("completed", "pruned", "diverged") for t in trials)
    ran = next(t for t in trials if t.stage == "decide")
    assert ran.provenance["code"].keys() == {"commit", "dirty"}
    assert "torch" in ran.provenance["packages"]
    assert ran.provenance["task"] == "tiny:build"
    assert ran.device.startswith("cpu")
    assert ran.host
    assert ran.started_at < ran.finished_at
    assert len(env.store.step_lrs("small", ran.number)) == ran.steps == 12
    assert [e.step for e in env.store.evaluations("small", ran.number)] == [3, 6, 9, 12]
    assert env.store.get_lease("small") is None
    lines = capfd.readouterr().err.splitlines()
    assert len([line for line in lines if line.startswith("[")]) == len(trials)


def test_a_rerun_is_bit_equal(env: Environment) -> None:
    service.start(study_spec(**QUICK, study={"task": "tiny:noisy"}), env)
    number = env.store.trials("small")[-1].number
    trial, then, now = service.rerun("small", number, env)
    assert trial.value == now.value
    assert [e.metrics for e in then] == [e.metrics for e in now.evaluations]
    assert len(then) == 2


def test_a_name_is_used_once(env: Environment) -> None:
    spec = study_spec(**QUICK)
    service.start(spec, env)
    with pytest.raises(UsageError, match="resume small"):
        service.start(spec, env)
    before = env.store.get_study("small").created_at
    service.start(spec, env, replace=True)
    assert env.store.get_study("small").created_at > before


@pytest.mark.parametrize(
    ("study", "error", "message"),
    [
        ({"task": "faulty:build_raises"}, TaskError, "no such data"),
        ({"task": "faulty:not_a_task"}, UsageError, "Task"),
        ({"task": "nowhere:build"}, UsageError, "nowhere"),
        ({"task": "tiny:buld"}, UsageError, "build"),
        ({"metric": "accuracy"}, UsageError, "allowed: .*acc"),
    ],
)
def test_what_is_wrong_with_a_task_is_told_before_anything_is_created(
    env: Environment, study: dict[str, str], error: type[TunerError], message: str
) -> None:
    with pytest.raises(error, match=message):
        service.start(study_spec(**QUICK, study=study), env)
    assert env.store.list_studies() == []


def test_a_bug_in_the_users_code_stops_the_study_early(env: Environment) -> None:
    with pytest.raises(TaskError, match="KeyError: 'weights'") as caught:
        service.start(study_spec(**QUICK, study={"task": "faulty:loss_raises"}), env)
    assert "raise_key_error" in caught.value.traceback
    study = env.store.get_study("small")
    assert study.state == "failed"
    kinds = Counter(t.failure.kind for t in env.store.trials("small") if t.failure)
    assert kinds["user_error"] == 3


def test_a_repaired_bug_is_tried_again(
    env: Environment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flag = tmp_path / "repaired"
    monkeypatch.setenv("REPAIRED", str(flag))
    with pytest.raises(TaskError, match="not yet"):
        service.start(study_spec(**QUICK, study={"task": "faulty:until_repaired"}), env)
    flag.touch()
    result = service.resume("small", env)
    assert result.study.state == "completed"
    assert not any(t.failure for t in env.store.trials("small"))


def test_mlflow_follows_a_study_and_sync_finds_nothing_missing(env: Environment) -> None:
    with_mlflow = replace(env, mlflow_uri=env.home.mlflow_uri)
    service.start(study_spec(**QUICK), with_mlflow)
    report = service.sync_mlflow("small", env.store, env.home.mlflow_uri)
    runs = len(env.store.trials("small")) + 1 + 1  # trials, arms, study
    assert (report.created, report.completed, report.unchanged) == (0, 0, runs)


def test_a_study_does_not_need_mlflow(env: Environment, capfd: pytest.CaptureFixture[str]) -> None:
    down = replace(env, mlflow_uri="http://127.0.0.1:9")
    result = service.start(study_spec(**QUICK), down)
    assert result.study.state == "completed"
    errors = capfd.readouterr().err
    assert errors.count("tuner mlflow sync small") == 1
    report = service.sync_mlflow("small", env.store, env.home.mlflow_uri)
    assert report.created == len(env.store.trials("small")) + 2


def test_a_study_that_diverges_everywhere_has_no_answer(env: Environment) -> None:
    with pytest.raises(NoCompletedTrialError):
        service.start(study_spec(**QUICK, study={"task": "faulty:nan_loss"}), env)
    trials = env.store.trials("small")
    assert {t.state for t in trials} == {"diverged"}
    assert env.store.get_study("small").state == "failed"


def test_a_regression_is_minimized(env: Environment) -> None:
    study = {"task": "tiny:regression", "metric": "loss", "direction": "minimize"}
    result = service.start(study_spec(**{**QUICK, "arms": [ADAMW, SGD]}, study=study), env)
    assert result.comparison.direction == "minimize"
    assert result.comparison.arms[0].mean <= result.comparison.arms[1].mean


def test_a_killed_worker_is_replaced_and_its_trial_tried_again(env: Environment) -> None:
    data = {**QUICK, "budget": {**QUICK["budget"], "max_steps": 60}}
    spec = study_spec(**data, study={"task": "faulty:sleepy"})
    killed: list[int] = []

    def kill_one() -> bool:
        children = [
            p
            for p in psutil.Process().children(recursive=True)
            if "tuner.executors.worker" in " ".join(p.cmdline())
        ]
        now = states(env)
        if not killed and children and now["completed"] and now["running"]:
            os.kill(children[0].pid, signal.SIGKILL)
            killed.append(children[0].pid)
        return False

    result = service.start(spec, replace(env, should_stop=kill_one))
    assert killed
    assert result.study.state == "completed"
    assert max(t.attempts for t in env.store.trials("small")) == 2


def test_a_trial_that_always_kills_its_worker_fails_alone(env: Environment) -> None:
    budget = {**QUICK["budget"], "trials_per_arm": 1, "default_seeds": 0}
    data = {**QUICK, "budget": budget, "run": {"slots": 1, "retries": 1}}
    with pytest.raises(NoCompletedTrialError):
        service.start(study_spec(**data, study={"task": "faulty:late_segfault"}), env)
    failed = env.store.trials("small")
    assert all(t.failure.kind == "killed" and t.attempts == 2 for t in failed)
    assert "SIGSEGV" in failed[0].failure.message


def test_out_of_memory_makes_the_parts_of_a_batch_smaller(env: Environment) -> None:
    result = service.start(study_spec(**QUICK, study={"task": "faulty:memory_for_six"}), env)
    trials = [t for t in env.store.trials("small") if t.stage != "lr-range"]
    assert result.study.state == "completed"
    assert {t.micro_batch for t in trials if t.params["batch_size"] >= 8} <= {4, None}
    assert any(t.micro_batch == 4 for t in trials)


def test_a_stopped_study_goes_on_to_the_same_trials(env: Environment, tmp_path: Path) -> None:
    spec = study_spec(run={"slots": 2})
    stopping = replace(env, should_stop=lambda: states(env)["completed"] >= 9)
    result = service.start(spec, stopping)
    assert (result.study.state, result.comparison) == ("stopped", None)
    assert not states(env)["running"]
    result = service.resume("small", env)
    assert result.study.state == "completed"

    whole = replace(env, store=open_store(f"sqlite:///{tmp_path}/whole.db"))
    service.start(spec, whole)
    assert [same(t) for t in env.store.trials("small")] == [
        same(t) for t in whole.store.trials("small")
    ]
    whole.store.close()


def test_a_study_can_be_stopped_through_the_database(env: Environment) -> None:
    spec = study_spec(**QUICK, study={"task": "faulty:sleepy"})
    timer = threading.Thread(target=_request_stop, args=(env.store,))
    timer.start()
    result = service.start(spec, env)
    timer.join()
    assert result.study.state == "stopped"
    assert any(t.state == "interrupted" for t in env.store.trials("small"))


def _request_stop(store: SqlStore) -> None:
    while not any(store.trials(study.name) for study in store.list_studies()):
        time.sleep(0.1)
    store.request_stop("small")


def test_two_coordinators_are_one_too_many(env: Environment) -> None:
    service.start(study_spec(**QUICK), env)
    now = datetime.now(UTC)
    far = Lease(
        study="small", owner="x", host="elsewhere", pid=1, expires_at=now + timedelta(minutes=1)
    )
    assert env.store.acquire_lease(far, now) is None
    with pytest.raises(TunerError, match="process 1 on elsewhere"):
        service.resume("small", env)


def test_a_dead_coordinator_of_this_host_is_succeeded_at_once(env: Environment) -> None:
    service.start(study_spec(**QUICK), env)
    done = subprocess.Popen([sys.executable, "-c", ""])
    done.wait()
    now = datetime.now(UTC)
    host = env.store.trials("small")[0].host
    dead = Lease(
        study="small", owner="x", host=host, pid=done.pid, expires_at=now.replace(year=2100)
    )
    assert env.store.acquire_lease(dead, now) is None
    take_lease(env.store, "small")
    assert env.store.get_lease("small").pid == os.getpid()


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A folder with a study file, as a user has it."""
    (tmp_path / "small.toml").write_text(toml_of(study_data(run={"slots": 2})))
    return tmp_path


def command(project: Path, home: str, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "tuner", "--mlflow-uri", "none", "study", *arguments],
        cwd=project,
        env={**os.environ, "TUNER_HOME": home, "PYTHONPATH": str(TASKS)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def finished(project: Path, home: str) -> list[Trial]:
    if not (project / home / "tuner.db").exists():
        return []
    store = open_store(f"sqlite:///{project / home / 'tuner.db'}")
    names = [s.name for s in store.list_studies()]
    trials = store.trials("small") if names else []
    store.close()
    return trials


def wait_for(project: Path, home: str, count: int, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 60
    while sum(t.state == "completed" for t in finished(project, home)) < count:
        assert time.monotonic() < deadline, "no progress"
        assert process.poll() is None, process.communicate()
        time.sleep(0.1)


def processes_in(folder: Path) -> list[psutil.Process]:
    """Workers whose logs lie in the folder, alive."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        if any(str(folder) in part for part in process.info["cmdline"] or []):
            found.append(process)
    return found


def test_kill_nine_of_the_process_group_loses_nothing(project: Path) -> None:
    whole = command(project, "whole", "start", "small.toml")
    assert whole.wait(120) == 0, whole.communicate()

    process = command(project, "killed", "start", "small.toml")
    wait_for(project, "killed", 8, process)
    before = [same(t) for t in finished(project, "killed") if t.state == "completed"]
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    kept = [same(t) for t in finished(project, "killed")]
    assert set(map(str, before)) <= set(map(str, kept))
    process = command(project, "killed", "resume", "small")
    assert process.wait(120) == 0, process.communicate()
    assert [same(t) for t in finished(project, "killed")] == [
        same(t) for t in finished(project, "whole")
    ]
    assert whole.communicate()[0] == process.communicate()[0]  # the same table and answer


def test_ctrl_c_stops_within_seconds_and_keeps_what_is_finished(project: Path) -> None:
    process = command(project, "home", "start", "small.toml")
    wait_for(project, "home", 3, process)
    os.kill(process.pid, signal.SIGINT)
    asked = time.monotonic()
    _, errors = process.communicate(timeout=15)
    assert time.monotonic() - asked < 10
    assert process.returncode == 130
    assert "tuner study resume small" in errors
    assert "Traceback" not in errors
    trials = finished(project, "home")
    assert sum(t.state == "completed" for t in trials) >= 3
    assert not any(t.state == "running" for t in trials)
    assert processes_in(project) == []
