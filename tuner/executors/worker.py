"""The worker process: one slot's jobs, one after another. `python -m tuner.executors.worker`.

Two pipes of JSON lines connect it with the coordinator: commands in, events out. Standard output
and error are the user's and go to the slot's log. The end of the command pipe means that the
coordinator is gone, and a thread of its own then ends the process at once, whatever user code does.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from queue import SimpleQueue
from typing import IO

from pydantic import TypeAdapter

from tuner.executors.base import Finished, Progress
from tuner.records import Evaluation, Job, Record


class Setup(Record):
    """The worker's only argument, as JSON.

    `commands` and `events` are file descriptors; an empty `cores` leaves the affinity alone.
    """

    slot: int
    commands: int
    events: int
    cores: tuple[int, ...]
    threads: int


class Ready(Record):
    """The first event: the worker imported all it needs."""

    pid: int


class Run(Record):
    """Command: run a job; sent only when the previous one has finished."""

    run: Job


class Cancel(Record):
    """Command: end the job, if it is still running, in state "cancelled"."""

    cancel: str


Command = Run | Cancel
Message = Ready | Progress | Finished
COMMAND: TypeAdapter[Command] = TypeAdapter(Command)
MESSAGE: TypeAdapter[Message] = TypeAdapter(Message)


class Mailbox:
    """Reads commands in a thread: jobs into a queue, cancellations into a set."""

    def __init__(self, commands: IO[bytes]) -> None:
        self.jobs: SimpleQueue[Job] = SimpleQueue()
        self.cancelled: set[str] = set()
        threading.Thread(target=self._read, args=(commands,), daemon=True).start()

    def _read(self, commands: IO[bytes]) -> None:
        for line in commands:
            command = COMMAND.validate_json(line)
            if isinstance(command, Run):
                self.jobs.put(command.run)
            else:
                self.cancelled.add(command.cancel)
        # The coordinator is gone. The worker leads its process group, so the processes that user
        # code started (data loaders) end with it.
        os.killpg(os.getpgid(0), signal.SIGKILL)


def main(argument: str) -> None:
    """Serve jobs until the coordinator closes the pipe."""
    setup = Setup.model_validate_json(argument)
    if setup.cores and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, setup.cores)
    events = os.fdopen(setup.events, "wb", buffering=0)
    commands = os.fdopen(setup.commands, "rb")
    # A process that user code forks must not keep the pipes open after this one died.
    os.register_at_fork(after_in_child=lambda: _close(setup.commands, setup.events))

    def send(message: Message) -> None:
        line = message.model_dump_json().encode() + b"\n"
        while line:
            line = line[events.write(line) or 0 :]

    mailbox = Mailbox(commands)
    # Only now: the environment, the affinity and the watchdog are in place.
    import torch

    from tuner.training import run

    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        raise RuntimeError("CUDA was initialised before the worker was bound to its device")
    torch.set_num_threads(setup.threads)
    send(Ready(pid=os.getpid()))
    while True:
        job = mailbox.jobs.get()
        _log(f"job {job.id}: {job.kind} {job.configuration.optimizer} seed {job.seed}")

        def report(
            step: int, total: int, evaluation: Evaluation | None, job_id: str = job.id
        ) -> bool:
            send(
                Progress(
                    job_id=job_id,
                    slot=setup.slot,
                    step=step,
                    total_steps=total,
                    evaluation=evaluation,
                )
            )
            return job_id not in mailbox.cancelled

        send(Finished(slot=setup.slot, outcome=run(job, report)))


def _close(*descriptors: int) -> None:
    for descriptor in descriptors:
        os.close(descriptor)


def _log(text: str) -> None:
    with contextlib.suppress(OSError):  # the disk of the log is full
        sys.stderr.write(f"--- {text}\n")
        sys.stderr.flush()


if __name__ == "__main__":
    main(sys.argv[1])
