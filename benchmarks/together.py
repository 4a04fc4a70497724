"""Functions that train, side by side: what several of them wait for is trained as one stack."""

from __future__ import annotations

import threading
import traceback
from collections.abc import Callable

from benchmarks.trial_batches import execute, largest_stack
from tuner.records import Job, Outcome

Train = Callable[[list[Job]], list[Outcome]]


class Together:
    """Functions that train, side by side in threads, their runs stacked into batches."""

    def __init__(self) -> None:
        self._ready = threading.Condition()
        self._live = 0
        self._waiting: dict[int, list[Job]] = {}
        self._done: dict[str, Outcome] = {}
        self._answers: dict[int, list[Outcome]] = {}

    def run(self, functions: list[Callable[[Train], None]]) -> None:
        """Call all of them and return when the last has ended."""
        self._live = len(functions)
        for number, function in enumerate(functions):
            threading.Thread(target=self._call, args=(number, function), daemon=True).start()
        while True:
            with self._ready:
                self._ready.wait_for(lambda: len(self._waiting) == self._live)
                if not self._live:
                    return
                waiting = dict(self._waiting)
            jobs = [
                job.model_copy(update={"id": f"{number}/{place}"})
                for number, asked in waiting.items()
                for place, job in enumerate(asked)
                if f"{number}/{place}" not in self._done
            ]
            self._done |= execute(largest_stack(jobs))
            with self._ready:
                for number, asked in waiting.items():
                    ids = [f"{number}/{place}" for place in range(len(asked))]
                    if all(i in self._done for i in ids):
                        self._answers[number] = [self._done.pop(i) for i in ids]
                        del self._waiting[number]
                self._ready.notify_all()

    def _call(self, number: int, function: Callable[[Train], None]) -> None:
        def train(jobs: list[Job]) -> list[Outcome]:
            with self._ready:
                self._waiting[number] = jobs
                self._ready.notify_all()
                self._ready.wait_for(lambda: number in self._answers)
                return self._answers.pop(number)

        try:
            function(train)
        except Exception:
            traceback.print_exc()
        finally:
            with self._ready:
                self._live -= 1
                self._ready.notify_all()
