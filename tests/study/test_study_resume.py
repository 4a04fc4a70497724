"""Whole studies that are stopped, killed and resumed: nothing is lost, nothing changes."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psutil
import pytest

from tests.jobs import TASKS
from tests.study.conftest import environment
from tests.study.specs import QUICK, WHOLE, same, states, study_data, study_spec, toml_of
from tuner import service
from tuner.errors import TunerError
from tuner.lease import take_lease
from tuner.records import Trial
from tuner.service import Environment
from tuner.spec import parse_spec
from tuner.spec_sections import DERIVED
from tuner.stages import stage_sizes
from tuner.store.base import Lease
from tuner.store.sql import SqlStore, open_store


@pytest.mark.slow
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


STAGED = study_spec(
    **{
        **WHOLE,
        "budget": {**WHOLE["budget"], "max_steps": 250, "trials_per_arm": 6, "lr_range_steps": 40},
    },
    run={"slots": 2},
)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> list[Trial]:
    """The trials of that study, run from beginning to end."""
    with environment(tmp_path_factory.mktemp("whole")) as env:
        service.start(STAGED, env)
        return env.store.trials("small")


@pytest.mark.slow
@pytest.mark.parametrize(
    "stage", ["calibrate", "defaults", "lr-range", "screen", "explore", "confirm", "decide"]
)
def test_a_study_stopped_in_any_stage_ends_as_the_uninterrupted_one(
    env: Environment, uninterrupted: list[Trial], stage: str
) -> None:
    def reached() -> bool:
        known = [s.name for s in env.store.list_studies()]
        done = env.store.trials("small") if known else []
        return any(t.stage == stage and t.state != "running" for t in done)

    assert service.start(STAGED, replace(env, should_stop=reached)).study.state == "stopped"
    assert service.resume("small", env).study.state == "completed"
    assert [(*same(t), t.length, t.stop_rules) for t in env.store.trials("small")] == [
        (*same(t), t.length, t.stop_rules) for t in uninterrupted
    ]


@pytest.mark.slow
def test_hours_become_numbers_that_stay_with_the_study(env: Environment) -> None:
    """A limit by the clock is worked out once; a resumed study keeps to it."""
    data = study_data(**WHOLE, run={"slots": 2})
    budget = {k: v for k, v in data["budget"].items() if k not in DERIVED}
    data["budget"] = {**budget, "max_steps": 250, "hours": 0.01}
    spec = parse_spec(data, "test.toml", "test")

    def exploring() -> bool:
        known = [s.name for s in env.store.list_studies()]
        return known != [] and any(t.stage == "screen" for t in env.store.trials("small"))

    assert service.start(spec, replace(env, should_stop=exploring)).study.state == "stopped"
    fixed = env.store.get_study("small").spec["budget"]
    assert fixed["arm_trials"]
    assert service.resume("small", env).study.state == "completed"
    assert env.store.get_study("small").spec["budget"] == fixed
    screened = [t for t in env.store.trials("small") if t.stage == "screen"]
    assert len(screened) == sum(fixed["arm_trials"].values())


def test_a_study_can_be_stopped_through_the_database(env: Environment) -> None:
    longer = {**QUICK, "budget": {**QUICK["budget"], "max_steps": 200}}  # two seconds a trial
    spec = study_spec(**longer, study={"task": "faulty:sleepy"})
    timer = threading.Thread(target=_request_stop, args=(env.store,))
    timer.start()
    result = service.start(spec, env)
    timer.join()
    assert result.study.state == "stopped"
    assert states(env)["completed"] < sum(stage_sizes(spec).values())
    assert not states(env)["running"]


def _request_stop(store: SqlStore) -> None:
    while not any(store.trials(study.name) for study in store.list_studies()):
        time.sleep(0.1)
    store.request_stop("small")


def test_two_coordinators_are_one_too_many(env: Environment) -> None:
    env.store.create_study(service.new_study(study_spec(**QUICK), {}))
    now = datetime.now(UTC)
    far = Lease(
        study="small", owner="x", host="elsewhere", pid=1, expires_at=now + timedelta(minutes=1)
    )
    assert env.store.acquire_lease(far, now) is None
    with pytest.raises(TunerError, match="process 1 on elsewhere"):
        service.resume("small", env)


def test_a_dead_coordinator_of_this_host_is_succeeded_at_once(env: Environment) -> None:
    env.store.create_study(service.new_study(study_spec(**QUICK), {}))
    done = subprocess.Popen([sys.executable, "-c", ""])
    done.wait()
    now = datetime.now(UTC)
    dead = Lease(
        study="small",
        owner="x",
        host=socket.gethostname(),
        pid=done.pid,
        expires_at=now.replace(year=2100),
    )
    assert env.store.acquire_lease(dead, now) is None
    take_lease(env.store, "small")
    assert env.store.get_lease("small").pid == os.getpid()


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A folder with a study file, as a user has it."""
    budget = {"trials_per_arm": 3, "confirm_top": 1, "decide_seeds": 2}
    (tmp_path / "small.toml").write_text(toml_of(study_data(budget=budget, run={"slots": 2})))
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
    assert "`tuner --mlflow-uri none study resume small` goes on" in errors
    assert "Traceback" not in errors
    trials = finished(project, "home")
    assert sum(t.state == "completed" for t in trials) >= 3
    assert not any(t.state == "running" for t in trials)
    assert processes_in(project) == []
