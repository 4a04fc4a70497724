"""Executors under test, and helpers that drive them to an end."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from tuner.executors.base import Event, Executor, Finished, Slot
from tuner.executors.devices import available_cores
from tuner.executors.inline import InlineExecutor
from tuner.executors.local import LocalExecutor
from tuner.records import Outcome

PATIENCE = 60.0


def cpu_slots(count: int) -> tuple[Slot, ...]:
    """Slots of one core each, sharing cores where the machine has too few."""
    cores = available_cores()
    return tuple(
        Slot(index=index, device=f"cpu:{index}", cores=cores[index % len(cores)])
        for index in range(count)
    )


def wait_for(condition: Callable[[], bool], seconds: float = PATIENCE) -> bool:
    """Whether a condition came true in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def poll_until(executor: Executor, wanted: Callable[[Event], bool]) -> list[Event]:
    """All events up to and including the first wanted one."""
    events: list[Event] = []
    deadline = time.monotonic() + PATIENCE
    while not any(map(wanted, events)):
        assert time.monotonic() < deadline, events
        events += executor.poll(0.2)
    return events


def finish(executor: Executor, count: int = 1) -> list[Outcome]:
    """Outcomes of the next jobs to end, in that order."""
    outcomes: list[Outcome] = []
    deadline = time.monotonic() + PATIENCE
    while len(outcomes) < count:
        assert time.monotonic() < deadline, outcomes
        events = executor.poll(0.2)
        outcomes += [event.outcome for event in events if isinstance(event, Finished)]
    return outcomes


def workers() -> list[psutil.Process]:
    """Worker processes below this one."""
    return [
        child
        for child in psutil.Process().children(recursive=True)
        if child.status() != psutil.STATUS_ZOMBIE
    ]


@pytest.fixture(scope="session")
def logs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where workers, and the tasks that tell what they did, write."""
    return tmp_path_factory.mktemp("logs")


@pytest.fixture(scope="session")
def local(logs: Path) -> Iterator[LocalExecutor]:
    """Two workers for all tests, because a process takes seconds to start."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BUILD_LOG", str(logs / "builds"))
        patch.setenv("CHILD_LOG", str(logs / "child"))
        with LocalExecutor(cpu_slots(2), logs) as executor:
            yield executor


@pytest.fixture(scope="session")
def inline() -> InlineExecutor:
    return InlineExecutor()
