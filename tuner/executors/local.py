"""Jobs on this machine: one long-lived worker process per slot, bound to its device and cores.

The environment of a worker is set before it imports anything, so that CUDA sees one device and the
math libraries start the right number of threads. Its pipes carry JSON and nothing is pickled. A
parent that forks workers would import torch once for all, but then that parent would have to be
watched as well, and the coordinator could no longer wait for its own children.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from tuner.errors import TunerError
from tuner.executors.base import Event, Finished, Progress, Slot
from tuner.executors.worker import MESSAGE, Cancel, Command, Ready, Run, Setup
from tuner.records import Failure, Job, Outcome

# How long a cancelled job may take to notice before its process group is killed.
CANCEL_SECONDS = 3.0
# A dead worker is noticed by the end of its pipe; processes that it left behind may hold that open.
_LIVENESS_SECONDS = 0.25
_LOG_TAIL = 2000


class LocalExecutor:
    """Runs each slot's jobs in a process of its own; see `tuner.executors.base.Executor`.

    Workers start together at the first `submit`; `submit` and `poll` raise TunerError when one
    cannot even start. What user code prints goes to `log_dir/slot-<index>.log`.
    """

    def __init__(self, slots: Sequence[Slot], log_dir: Path) -> None:
        self._slots = tuple(slots)
        self._log_dir = Path(log_dir)
        self._workers: dict[int, _Worker] = {}
        self._selector = selectors.DefaultSelector()

    @property
    def slots(self) -> tuple[Slot, ...]:
        """All slots, busy or not."""
        return self._slots

    def free_slots(self) -> int:
        """How many jobs can be submitted now."""
        return len(self._slots) - sum(worker.job is not None for worker in self._workers.values())

    def submit(self, job: Job) -> int:
        """Start a job; returns the slot. Raises RuntimeError when none is free."""
        for slot in self._slots:
            if slot.index not in self._workers:
                self._start(slot)
        for index, worker in self._workers.items():
            if worker.job is None:
                worker.job, worker.step, worker.started = job, 0, time.monotonic()
                worker.send(Run(run=job))
                return index
        raise RuntimeError("no slot is free")

    def cancel(self, job_id: str) -> None:
        """Ask a job to end in state "cancelled"; `poll` kills it when it does not listen."""
        for worker in self._workers.values():
            if worker.job is not None and worker.job.id == job_id:
                worker.cancel()

    def poll(self, timeout: float) -> list[Event]:
        """Events since the last call, waiting at most `timeout` seconds for the first."""
        deadline = time.monotonic() + timeout
        while True:
            wait = min(max(deadline - time.monotonic(), 0.0), _LIVENESS_SECONDS)
            if self._workers:
                for key, _ in self._selector.select(wait):
                    key.data.receive()
            else:
                time.sleep(wait)
            events = [
                event for worker in list(self._workers.values()) for event in self._of(worker)
            ]
            if events or time.monotonic() >= deadline:
                return events

    def close(self) -> None:
        """Cancel what runs and end all workers, within five seconds."""
        for worker in self._workers.values():
            worker.cancel()
        deadline = time.monotonic() + CANCEL_SECONDS
        while time.monotonic() < deadline and self.free_slots() < len(self._slots):
            with contextlib.suppress(TunerError):
                self.poll(0.1)
        for worker in list(self._workers.values()):
            self._end(worker)
        self._selector.close()

    def __enter__(self) -> LocalExecutor:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _start(self, slot: Slot) -> None:
        log = self._log_dir / f"slot-{slot.index}.log"
        try:
            worker = _Worker(slot, log)
        except OSError as error:
            raise TunerError(f"no worker could be started, log {log}: {error}") from error
        self._selector.register(worker.events, selectors.EVENT_READ, worker)
        self._workers[slot.index] = worker

    def _end(self, worker: _Worker) -> None:
        # First, so that nobody ends it again when Ctrl-C comes in between.
        del self._workers[worker.slot.index]
        self._selector.unregister(worker.events)
        worker.kill()

    def _of(self, worker: _Worker) -> list[Event]:
        """The worker's new events; replaces a worker that died or ran out of memory."""
        worker.kill_if_deaf()
        code = worker.process.poll()
        if code is not None:
            worker.receive()
        events = worker.take()
        spent = code is not None or any(_out_of_memory(event) for event in events)
        if spent:
            self._end(worker)
            if code is not None and code > 0 and not worker.ready:
                raise TunerError(_start_failure(worker, code))
            if worker.job is not None:
                events.append(worker.obituary(code))
            self._start(worker.slot)
        return events


class _Worker:
    """A worker process, its pipes and the job it has."""

    def __init__(self, slot: Slot, log: Path) -> None:
        self.slot = slot
        self.log = log
        self.job: Job | None = None
        self.step = 0
        self.started = 0.0
        self.ready = False
        self._cancelled_at: float | None = None
        self._buffer = b""
        self._messages: list[Event] = []
        threads = max(1, len(slot.cores))
        log.parent.mkdir(parents=True, exist_ok=True)
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        their_commands, self._commands = os.pipe()
        self.events, their_events = os.pipe()
        os.set_blocking(self.events, False)
        setup = Setup(
            slot=slot.index,
            commands=their_commands,
            events=their_events,
            cores=slot.cores,
            threads=threads,
        )
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tuner.executors.worker", setup.model_dump_json()],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env=_environment(slot, threads),
            pass_fds=(their_commands, their_events),
            start_new_session=True,
        )
        for descriptor in (output, their_commands, their_events):
            os.close(descriptor)

    def send(self, command: Command) -> None:
        """Write a command; a dead worker is noticed by `poll`, not here."""
        line = command.model_dump_json().encode() + b"\n"
        with contextlib.suppress(BrokenPipeError):
            while line:
                line = line[os.write(self._commands, line) :]

    def receive(self) -> None:
        """Read what is in the pipe; half a line stays in the buffer."""
        with contextlib.suppress(BlockingIOError):
            while chunk := os.read(self.events, 1 << 16):
                self._buffer += chunk
        *lines, self._buffer = self._buffer.split(b"\n")
        for line in lines:
            message = MESSAGE.validate_json(line)
            if isinstance(message, Ready):
                self.ready = True
            elif self.job is not None:
                self._messages.append(message)
                if isinstance(message, Progress):
                    self.step = message.step
                else:
                    self.job, self._cancelled_at = None, None

    def take(self) -> list[Event]:
        """Received events, each once."""
        messages, self._messages = self._messages, []
        return messages

    def cancel(self) -> None:
        """Ask the job to stop."""
        if self.job is not None and self._cancelled_at is None:
            self._cancelled_at = time.monotonic()
            self.send(Cancel(cancel=self.job.id))

    def kill_if_deaf(self) -> None:
        """Kill the process group when a cancelled job did not end in time."""
        late = self._cancelled_at is not None and (
            time.monotonic() - self._cancelled_at > CANCEL_SECONDS
        )
        if late:
            self._signal_group()
            self.process.wait()

    def kill(self) -> None:
        """End the process and all it started, and close the pipes."""
        self._signal_group()
        self.process.wait()
        os.close(self._commands)
        os.close(self.events)

    def _signal_group(self) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)

    def obituary(self, code: int | None) -> Finished:
        """The end of the job of a worker that died."""
        assert self.job is not None
        message = f"worker process {self.process.pid} {_cause(code)} at step {self.step}"
        cancelled = self._cancelled_at is not None
        outcome = Outcome(
            job_id=self.job.id,
            state="cancelled" if cancelled else "failed",
            failure=None if cancelled else Failure(kind="killed", message=message),
            wall_seconds=time.monotonic() - self.started,
            device=self.slot.device,
        )
        return Finished(slot=self.slot.index, outcome=outcome)


def _environment(slot: Slot, threads: int) -> dict[str, str]:
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")
    # An empty list hides all GPUs from a CPU slot.
    device = {"CUDA_VISIBLE_DEVICES": slot.visible_device or "", "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
    if slot.visible_device is None:  # a task that compiles itself repeats bit by bit, too
        device["TORCHINDUCTOR_DETERMINISTIC"] = "1"
    return {**os.environ, **dict.fromkeys(names, str(threads)), **device}


def _out_of_memory(event: Event) -> bool:
    failure = event.outcome.failure if isinstance(event, Finished) else None
    return failure is not None and failure.kind == "out_of_memory"


def _cause(code: int | None) -> str:
    if code is None or code >= 0:
        return f"exited with code {code}"
    name = signal.Signals(-code).name
    hint = " (perhaps the host ran out of memory)" if name == "SIGKILL" else ""
    return f"was killed by {name}{hint}"


def _start_failure(worker: _Worker, code: int) -> str:
    text = worker.log.read_bytes()[-_LOG_TAIL:].decode(errors="replace").strip()
    last = text.splitlines()[-1] if text else "no output"
    return (
        f"the worker of slot {worker.slot.index} could not start (exit code {code}): {last} "
        f"(see {worker.log})"
    )
