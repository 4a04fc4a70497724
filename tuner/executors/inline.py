"""Jobs in this process, one after another: for debugging with breakpoints, and for tests."""

from __future__ import annotations

import os

from tuner.executors.base import Event, Finished, Progress, Slot
from tuner.records import Evaluation, Job


class InlineExecutor:
    """One slot; `poll` runs the submitted job to its end and does not keep to its timeout."""

    def __init__(self) -> None:
        affinity = getattr(os, "sched_getaffinity", None)
        cores = tuple(sorted(affinity(0))) if affinity else ()
        self._slot = Slot(index=0, device="inline", cores=cores)
        self._job: Job | None = None

    @property
    def slots(self) -> tuple[Slot, ...]:
        """The one slot."""
        return (self._slot,)

    def free_slots(self) -> int:
        """1, or 0 while a job waits for `poll`."""
        return int(self._job is None)

    def submit(self, job: Job) -> int:
        """Accept a job for the next `poll`; raises RuntimeError when one waits already."""
        if self._job is not None:
            raise RuntimeError("no slot is free")
        self._job = job
        return 0

    def poll(self, timeout: float) -> list[Event]:
        """Run the waiting job; returns its progress and its end."""
        from tuner.training import run

        if self._job is None:
            return []
        job, self._job = self._job, None
        events: list[Event] = []

        def report(step: int, total: int, evaluation: Evaluation | None) -> bool:
            events.append(
                Progress(job_id=job.id, slot=0, step=step, total_steps=total, evaluation=evaluation)
            )
            return True

        outcome = run(job, report)
        return [*events, Finished(slot=0, outcome=outcome)]

    def close(self) -> None:
        """Forget a job that waits."""
        self._job = None
