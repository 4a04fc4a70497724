"""What every executor must do; one row per executor."""

from collections.abc import Callable

import pytest

from tests.executors.conftest import finish, poll_until
from tests.jobs import go_on, job, numbers
from tuner.executors.base import Executor, Finished, Progress
from tuner.records import Job
from tuner.training import run

EXECUTORS = ("inline", "local")

# Faults that end the process in which the job runs cannot be shown where that process is ours.
PROCESS_FAULTS = {
    "segfault": ("faulty:segfault", "SIGSEGV"),
}
NEED_A_PROCESS = {("inline", fault): "it would end the tests" for fault in PROCESS_FAULTS}


@pytest.fixture(params=EXECUTORS)
def executor(request: pytest.FixtureRequest) -> Executor:
    chosen: Executor = request.getfixturevalue(request.param)
    assert chosen.free_slots() == len(chosen.slots)
    return chosen


def test_results_are_those_of_training_here(executor: Executor) -> None:
    the_job = job("tiny:noisy")
    slot = executor.submit(the_job)
    events = poll_until(executor, lambda event: isinstance(event, Finished))
    outcome = events[-1].outcome
    expected = run(the_job, go_on)
    assert numbers(outcome) == numbers(expected)
    evaluations = [e.evaluation for e in events if isinstance(e, Progress) and e.evaluation]
    assert evaluations == outcome.evaluations
    assert {event.slot for event in events} == {slot}
    assert all(event.total_steps == 40 for event in events if isinstance(event, Progress))


def test_slots_fill_and_become_free_again(executor: Executor) -> None:
    count = len(executor.slots)
    taken = {executor.submit(job(id=f"fill-{index}")) for index in range(count)}
    assert taken == {slot.index for slot in executor.slots}
    assert executor.free_slots() == 0
    with pytest.raises(RuntimeError, match="no slot is free"):
        executor.submit(job(id="one too many"))
    ended = {outcome.job_id for outcome in finish(executor, count)}
    assert ended == {f"fill-{index}" for index in range(count)}
    assert executor.free_slots() == count


def test_polling_with_nothing_to_do_returns_nothing(executor: Executor) -> None:
    assert executor.poll(0.0) == []
    assert executor.poll(0.05) == []


@pytest.mark.parametrize(
    ("task", "state", "kind"),
    [
        ("tiny:build", "completed", None),
        ("tiny:regression", "completed", None),
        ("faulty:nan_loss", "diverged", "diverged"),
        ("faulty:build_raises", "failed", "user_error"),
        ("faulty:loss_raises", "failed", "user_error"),
        ("faulty:stops_python", "failed", "user_error"),
        ("faulty:out_of_memory", "failed", "out_of_memory"),
        ("nowhere:build", "failed", "usage_error"),
    ],
)
def test_every_end_arrives(executor: Executor, task: str, state: str, kind: str | None) -> None:
    executor.submit(job(task))
    outcome = finish(executor)[0]
    assert outcome.state == state
    assert (outcome.failure.kind if outcome.failure else None) == kind
    executor.submit(job(id="afterwards"))
    assert finish(executor)[0].state == "completed"


@pytest.mark.parametrize("kind", ["check", "lr_range"])
def test_every_kind_of_job_runs(executor: Executor, kind: str) -> None:
    executor.submit(job(kind=kind, max_steps=60))
    outcome = finish(executor)[0]
    assert outcome.state == "completed", outcome.failure
    assert (outcome.lr_curve is not None) == (kind == "lr_range")


def chatty(**changes: object) -> Job:
    return job("faulty:chatty", max_steps=5, evaluations=5, **changes)


def nothing_finite() -> Job:
    return job("faulty:nan_metric")  # its metric is NaN, and only the loss decides


@pytest.mark.parametrize("make", [chatty, nothing_finite], ids=lambda make: make.__name__)
def test_output_and_nan_do_not_disturb_the_protocol(
    executor: Executor, make: Callable[[], Job]
) -> None:
    executor.submit(make())
    outcome = finish(executor)[0]
    assert outcome.state == "completed"
    assert len(outcome.evaluations) == make().evaluations


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        (name, fault)
        for name in EXECUTORS
        for fault in PROCESS_FAULTS
        if (name, fault) not in NEED_A_PROCESS
    ],
)
def test_the_end_of_a_process_ends_its_job_only(
    name: str, fault: str, request: pytest.FixtureRequest
) -> None:
    executor: Executor = request.getfixturevalue(name)
    task, cause = PROCESS_FAULTS[fault]
    executor.submit(job(task))
    outcome = finish(executor)[0]
    assert outcome.failure is not None
    assert outcome.failure.kind == "killed"
    assert cause in outcome.failure.message
    executor.submit(job(id="afterwards"))
    assert finish(executor)[0].state == "completed"
