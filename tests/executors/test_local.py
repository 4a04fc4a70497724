"""Worker processes: bound to their slot, replaced when they die, gone when they should be."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.executors.conftest import cpu_slots, finish, poll_until, wait_for, workers
from tests.jobs import TASKS, configuration, go_on, job, numbers
from tuner.errors import TunerError
from tuner.executors.base import Finished, Progress
from tuner.executors.devices import plan_slots
from tuner.executors.local import LocalExecutor, _Worker
from tuner.records import Outcome
from tuner.training import run


def training(event: object) -> bool:
    return isinstance(event, Progress) and event.step > 0


def gone(pid: int) -> bool:
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def surroundings(executor: LocalExecutor) -> dict[int, Outcome]:
    """One outcome per slot, of a task that reports what its process may use."""
    slots = [executor.submit(job("tiny:surroundings", id=str(i))) for i in executor.slots]
    outcomes = {int(slots.index(slot)): slot for slot in slots}
    assert set(outcomes) == set(range(len(slots)))
    found: dict[int, Outcome] = {}
    while len(found) < len(slots):
        for event in executor.poll(0.5):
            if isinstance(event, Finished):
                found[event.slot] = event.outcome
    return found


def test_each_worker_keeps_to_its_cores_and_threads(local: LocalExecutor) -> None:
    found = surroundings(local)
    for slot in local.slots:
        outcome = found[slot.index]
        assert outcome.info["environment"]["cores"] == sorted(slot.cores)
        assert outcome.info["environment"]["threads"] == len(slot.cores)
        assert outcome.info["environment"]["visible_device"] == ""
        assert outcome.evaluations[-1].metrics["threads"] == len(slot.cores)
        assert outcome.evaluations[-1].metrics["core"] in slot.cores


def test_each_worker_sees_one_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNER_FAKE_DEVICES", "2")
    with LocalExecutor(plan_slots(), tmp_path) as executor:
        found = surroundings(executor)
    devices = {slot: each.info["environment"]["visible_device"] for slot, each in found.items()}
    assert devices == {0: "GPU-fake-0", 1: "GPU-fake-1"}


@pytest.mark.slow
def test_workers_are_kept_from_job_to_job(local: LocalExecutor) -> None:
    local.submit(job())
    finish(local)
    before = {worker.pid for worker in workers()}
    for index in range(3):
        local.submit(job(id=str(index)))
        finish(local)
    assert {worker.pid for worker in workers()} == before


def test_data_is_loaded_once_per_worker(local: LocalExecutor, logs: Path) -> None:
    for seed in range(4):
        local.submit(job("tiny:slow_load", seed=seed, max_steps=2))
        assert finish(local)[0].state == "completed"
    builds = (logs / "builds").read_text().split()
    assert len(builds) == len(set(builds)) <= len(local.slots)


def test_what_users_print_goes_to_the_slots_log(local: LocalExecutor, logs: Path) -> None:
    slot = local.submit(job("faulty:chatty", id="talker"))
    finish(local)
    log = (logs / f"slot-{slot}.log").read_bytes()
    assert b"--- job talker: train adamw seed 1" in log
    assert b'{"slot": 0, "outcome": null}' in log
    assert b"raw bytes \xff" in log


def test_a_killed_worker_is_reported_and_replaced(local: LocalExecutor) -> None:
    slot = local.submit(job("faulty:sleepy", id="victim", max_steps=10_000))
    other = local.submit(job("faulty:sleepy", id="neighbour", max_steps=100))
    poll_until(local, training)
    victim = local._workers[slot].process.pid
    os.kill(victim, signal.SIGKILL)
    outcomes = {outcome.job_id: outcome for outcome in finish(local, 2)}
    failure = outcomes["victim"].failure
    assert failure is not None
    assert failure.kind == "killed"
    assert f"worker process {victim} was killed by SIGKILL" in failure.message
    assert outcomes["neighbour"].state == "completed"
    assert slot != other
    local.submit(job())
    local.submit(job(id="second"))
    assert {outcome.state for outcome in finish(local, 2)} == {"completed"}


def test_a_killed_run_goes_on_from_its_checkpoint(local: LocalExecutor, tmp_path: Path) -> None:
    path = tmp_path / "trial.pt"
    long = {"max_steps": 150, "evaluations": 5}
    the_job = job("faulty:sleepy", checkpoint=str(path), checkpoint_seconds=0.05, **long)
    slot = local.submit(the_job)
    assert wait_for(lambda: bool(local.poll(0.05)) and path.exists())
    os.kill(local._workers[slot].process.pid, signal.SIGKILL)
    assert finish(local)[0].failure.kind == "killed"
    local.submit(the_job)
    resumed = finish(local)[0]
    assert resumed.info["resumed_at"] > 0
    assert numbers(resumed) == numbers(run(job("faulty:sleepy", **long), go_on))
    assert not path.exists()


@pytest.mark.slow
def test_a_worker_may_die_while_it_starts_or_idles(local: LocalExecutor) -> None:
    for moment in (0.0, 0.4):
        slot = local.submit(job("faulty:deaf"))
        time.sleep(moment)
        os.kill(local._workers[slot].process.pid, signal.SIGKILL)
        assert finish(local)[0].failure.kind == "killed"
    slot = local.submit(job())
    assert finish(local)[0].state == "completed"
    os.kill(local._workers[slot].process.pid, signal.SIGKILL)
    assert wait_for(lambda: local._workers[slot].process.poll() is not None)
    assert local.poll(0.1) == []
    local.submit(job())
    assert finish(local)[0].state == "completed"


def test_processes_that_user_code_started_end_too(local: LocalExecutor, logs: Path) -> None:
    child = logs / "child"
    slot = local.submit(job("faulty:spawning"))
    assert wait_for(lambda: child.exists() and child.read_text() != "")
    pid = int(child.read_text())
    assert not gone(pid)
    os.kill(local._workers[slot].process.pid, signal.SIGKILL)
    assert finish(local)[0].failure.kind == "killed"
    assert wait_for(lambda: gone(pid), 10.0)


def test_a_worker_that_ran_out_of_memory_is_replaced(local: LocalExecutor) -> None:
    slot = local.submit(job("faulty:out_of_memory"))
    before = local._workers[slot].process.pid
    assert finish(local)[0].failure.kind == "out_of_memory"
    assert local._workers[slot].process.pid != before
    assert gone(before)


def test_a_job_can_be_cancelled(local: LocalExecutor) -> None:
    local.submit(job("faulty:sleepy", id="long", max_steps=10_000))
    poll_until(local, training)
    local.cancel("long")
    assert finish(local)[0].state == "cancelled"


def test_a_job_that_does_not_listen_is_killed(
    local: LocalExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tuner.executors.local.CANCEL_SECONDS", 0.3)
    local.submit(job("faulty:busy", id="busy", evaluations=40))
    poll_until(local, training)
    local.cancel("busy")
    outcome = finish(local)[0]
    assert (outcome.state, outcome.failure) == ("cancelled", None)


@pytest.mark.slow
@pytest.mark.parametrize("task", ["faulty:sleepy", "faulty:busy"])
def test_closing_leaves_no_process_behind(tmp_path: Path, task: str) -> None:
    executor = LocalExecutor(cpu_slots(2), tmp_path)
    executor.submit(job(task, max_steps=10_000, evaluations=10_000))
    poll_until(executor, training)
    pids = [worker.process.pid for worker in executor._workers.values()]
    started = time.monotonic()
    executor.close()
    assert time.monotonic() - started < 15.0  # five on an idle machine
    assert all(map(gone, pids))


def test_closing_that_was_interrupted_is_done_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C while workers are ended: the coordinator closes once more on its way out."""
    executor = LocalExecutor(cpu_slots(2), tmp_path)
    executor.submit(job("faulty:sleepy", max_steps=10_000))
    poll_until(executor, training)
    pids = [worker.process.pid for worker in executor._workers.values()]
    real = _Worker.kill

    def interrupted(worker: _Worker) -> None:
        monkeypatch.setattr(_Worker, "kill", real)
        real(worker)
        raise KeyboardInterrupt

    monkeypatch.setattr(_Worker, "kill", interrupted)
    with pytest.raises(KeyboardInterrupt):
        executor.close()
    executor.close()
    assert all(map(gone, pids))


COORDINATOR = """
import sys
from pathlib import Path
from tests.executors.conftest import cpu_slots
from tests.jobs import job
from tuner.executors.local import LocalExecutor

executor = LocalExecutor(cpu_slots(2), Path(sys.argv[1]))
executor.submit(job("faulty:busy", evaluations=40))
executor.submit(job("faulty:spawning", id="2"))
while True:
    for event in executor.poll(1.0):
        print("training", flush=True)
"""


def test_workers_do_not_outlive_a_killed_coordinator(tmp_path: Path) -> None:
    child = tmp_path / "child"
    coordinator = subprocess.Popen(
        [sys.executable, "-c", COORDINATOR, str(tmp_path)],
        cwd=TASKS.parent.parent,
        env={**os.environ, "CHILD_LOG": str(child)},
        stdout=subprocess.PIPE,
    )
    assert coordinator.stdout is not None
    assert coordinator.stdout.readline() == b"training\n"
    assert wait_for(lambda: child.exists() and child.read_text() != "")
    family = psutil.Process(coordinator.pid).children(recursive=True)
    assert len(family) == 3
    coordinator.kill()
    coordinator.wait()
    coordinator.stdout.close()
    assert wait_for(lambda: all(gone(each.pid) for each in family), 10.0)


def test_a_worker_that_cannot_start_is_a_clear_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "torch.py").write_text("raise ImportError('this torch is broken')\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with LocalExecutor(cpu_slots(1), tmp_path / "logs") as executor:
        executor.submit(job())
        with pytest.raises(TunerError, match="this torch is broken") as caught:
            finish(executor)
    assert "could not start (exit code 1)" in str(caught.value)
    assert "slot-0.log" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_log_that_cannot_be_written_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    executor = LocalExecutor(cpu_slots(1), tmp_path / "file")
    with pytest.raises(TunerError, match=r"no worker could be started, log .*slot-0\.log"):
        executor.submit(job())
    executor.close()


@pytest.mark.slow
def test_large_messages_pass(local: LocalExecutor) -> None:
    betas = {"lr": 1e-2, "betas": (0.9, 0.99)}
    the_job = job(
        configuration=configuration(optimizer_args=betas),
        max_steps=2000,
        evaluations=1,
        search_path=(str(TASKS), *(f"/nowhere/{'x' * 100}/{i}" for i in range(1500))),
    )
    assert len(the_job.model_dump_json()) > 1 << 17
    local.submit(the_job)
    outcome = finish(local)[0]
    assert len(outcome.lrs) == 2000
    assert outcome.state == "completed", outcome.failure
