"""The interface between the coordinator and whatever runs jobs.

Contract: `submit` starts a job on a free slot and returns at once; `poll` hands over what happened
since; a job ends in exactly one `Finished`. A worker that dies ends its job with failure kind
"killed" and is replaced; an out-of-memory job's worker is replaced too. No other exception of a job
leaves the executor. `close` cancels what runs and leaves no process behind.
"""

from __future__ import annotations

from typing import Protocol

from tuner.records import Evaluation, Job, Outcome, Record


class Slot(Record):
    """One place where one job runs at a time.

    `cores` are CPU numbers the process is bound to; `visible_device` is the value of
    CUDA_VISIBLE_DEVICES, None for a CPU slot.
    """

    index: int
    device: str  # as shown to people: "cpu:0-1", "GPU-5f1e... NVIDIA H100"
    cores: tuple[int, ...]
    visible_device: str | None = None


class Progress(Record):
    """A job moved on; sent a few times a second at most."""

    job_id: str
    slot: int
    step: int
    total_steps: int
    evaluation: Evaluation | None = None


class Finished(Record):
    """A job ended."""

    slot: int
    outcome: Outcome


Event = Progress | Finished


class Executor(Protocol):
    """Runs jobs on slots."""

    @property
    def slots(self) -> tuple[Slot, ...]:
        """All slots, busy or not."""

    def free_slots(self) -> int:
        """How many jobs can be submitted now."""

    def submit(self, job: Job) -> int:
        """Start a job; returns the slot. Raises RuntimeError when none is free."""

    def poll(self, timeout: float) -> list[Event]:
        """Events since the last call, waiting at most `timeout` seconds for the first."""

    def close(self) -> None:
        """Cancel what runs and end all workers, within five seconds."""
