"""Whole studies whose tasks or workers fail, each in its own way."""

import os
import signal
from collections import Counter
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from tests.study.specs import QUICK, states, study_spec
from tuner import service
from tuner.errors import NoCompletedTrialError, TaskError
from tuner.service import Environment


@pytest.mark.usefixtures("in_this_process")
def test_a_bug_in_the_users_code_stops_the_study_early(env: Environment) -> None:
    with pytest.raises(TaskError, match="KeyError: 'weights'") as caught:
        service.start(study_spec(**QUICK, study={"task": "faulty:loss_raises"}), env)
    assert "raise_key_error" in caught.value.traceback
    study = env.store.get_study("small")
    assert study.state == "failed"
    kinds = Counter(t.failure.kind for t in env.store.trials("small") if t.failure)
    assert kinds["user_error"] == 3


@pytest.mark.slow
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


@pytest.mark.usefixtures("in_this_process")
def test_a_study_that_diverges_everywhere_has_no_answer(env: Environment) -> None:
    with pytest.raises(NoCompletedTrialError):
        service.start(study_spec(**QUICK, study={"task": "faulty:nan_loss"}), env)
    trials = env.store.trials("small")
    assert {t.state for t in trials} == {"diverged"}
    assert env.store.get_study("small").state == "failed"


def workers() -> list[psutil.Process]:
    """The worker processes of this one; some may just be ending."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            if "tuner.executors.worker" in process.cmdline():
                found.append(process)
    return found


def test_a_killed_worker_is_replaced_and_its_trial_tried_again(env: Environment) -> None:
    data = {**QUICK, "budget": {**QUICK["budget"], "max_steps": 60}}
    spec = study_spec(**data, study={"task": "faulty:sleepy"})

    def attempts() -> int:
        return max(trial.attempts for trial in env.store.trials("small"))

    def kill_until_it_hits() -> bool:
        """A worker that has just answered, or waits for its next trial, takes none along."""
        now = states(env)
        if now["completed"] and now["running"] and attempts() == 1:
            for worker in workers():
                os.kill(worker.pid, signal.SIGKILL)
        return False

    result = service.start(spec, replace(env, should_stop=kill_until_it_hits))
    assert result.study.state == "completed"
    assert attempts() == 2


@pytest.mark.slow
def test_a_trial_that_always_kills_its_worker_fails_alone(env: Environment) -> None:
    budget = {**QUICK["budget"], "trials_per_arm": 1, "default_seeds": 0}
    data = {**QUICK, "budget": budget, "run": {"slots": 1, "retries": 1}}
    with pytest.raises(NoCompletedTrialError):
        service.start(study_spec(**data, study={"task": "faulty:late_segfault"}), env)
    failed = env.store.trials("small")
    assert all(t.failure.kind == "killed" and t.attempts == 2 for t in failed)
    assert "SIGSEGV" in failed[0].failure.message


@pytest.mark.usefixtures("in_this_process")
def test_out_of_memory_makes_the_parts_of_a_batch_smaller(env: Environment) -> None:
    result = service.start(study_spec(**QUICK, study={"task": "faulty:memory_for_six"}), env)
    trials = [t for t in env.store.trials("small") if t.stage != "lr-range"]
    assert result.study.state == "completed"
    assert {t.micro_batch for t in trials if t.params["batch_size"] >= 8} <= {4, None}
    assert any(t.micro_batch == 4 for t in trials)
