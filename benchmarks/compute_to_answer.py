"""How good is the answer after so many training steps? This project against other tuners.

    python -m benchmarks.compute_to_answer --json runs.jsonl [--tasks NAME ...] [--tuners NAME ...]
        [--repetitions 10] [--first 100] [--budget 10000] [--peers FOLDER] [--report]

Every tuner searches the same space on the same tasks (`answer_scenarios`). What it would have
answered after so many steps is trained again on five fresh seeds that nothing else uses; the mean
of these is the confirmed loss, and its distance to the best known configuration's
(`best_known.json`) is the regret. Everything that a tuner spends is on its bill: of ours the range
test, the runs at published defaults and those that confirm and decide; the five seeds are
measurement and on nobody's bill.

Results are appended to the file; what is there is not run again. `--report` only prints the table.
Ray is not among this project's dependencies: `--peers` names a folder of packages that has it.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from benchmarks.answer_report import report
from benchmarks.answer_scenarios import SCENARIOS
from benchmarks.answer_tuners import TUNERS
from benchmarks.together import Together, Train
from benchmarks.trial_batches import execute

CHECKPOINTS = (500, 750, 1_000, 1_250, 1_500, 2_000, 3_000, 4_000, 5_000, 7_000, 10_000, 13_000)
SEEDS, FRESH = 5, 900_000_000  # of the seeds that confirm; no study reaches them


class Rows:
    """The results: one JSON object a line, appended."""

    def __init__(self, path: Path) -> None:
        self.path, self._lock = path, threading.Lock()
        lines = path.read_text().splitlines() if path.exists() else []
        self.rows: list[dict[str, Any]] = [json.loads(line) for line in lines]

    def add(self, row: dict[str, Any]) -> None:
        """Append a row."""
        with self._lock, self.path.open("a") as file:
            file.write(json.dumps(row) + "\n")
            self.rows.append(row)

    def of(self, kind: str) -> Iterator[dict[str, Any]]:
        """The rows of a kind: "study" or "confirmed"."""
        return (row for row in self.rows if row["kind"] == kind)


def run_studies(rows: Rows, task: str, tuners: list[str], repetitions: range, budget: int) -> None:
    """All repetitions of all tuners on a task that are not in the file."""
    done = {(r["task"], r["tuner"], r["repetition"]) for r in rows.of("study")}
    scenario = SCENARIOS[task]

    def one(tuner: str, repetition: int) -> Callable[[Train], None]:
        def function(train: Train) -> None:
            choices = TUNERS[tuner](scenario, repetition, budget, train)
            rows.add(
                {
                    "kind": "study",
                    "task": task,
                    "tuner": tuner,
                    "repetition": repetition,
                    "choices": [asdict(choice) for choice in choices],
                }
            )

        return function

    Together().run(
        [
            one(tuner, repetition)
            for tuner in tuners
            for repetition in repetitions
            if (task, tuner, repetition) not in done
        ]
    )


def at(choices: list[dict[str, Any]], steps: int) -> dict[str, Any] | None:
    """The answer after so many steps."""
    return next((c for c in reversed(choices) if c["steps"] <= steps), None)


def confirm(rows: Rows, task: str) -> None:
    """Train every answer that a checkpoint needs on fresh seeds."""
    done = {(r["task"], r["key"]) for r in rows.of("confirmed")}
    scenario = SCENARIOS[task]
    missing: dict[str, tuple[dict[str, float], int]] = {}
    for row in rows.of("study"):
        if row["task"] != task:
            continue
        for steps in CHECKPOINTS:
            choice = at(row["choices"], steps)
            key = choice and json.dumps([choice["point"], row["repetition"]])
            if choice and key and (task, key) not in done:
                missing[key] = (choice["point"], row["repetition"])
    keys = list(missing)
    for start in range(0, len(keys), 40):
        part = keys[start : start + 40]
        jobs = [
            scenario.job(f"{k}/{s}", missing[k][0], FRESH + missing[k][1] * SEEDS + s)
            for k in part
            for s in range(SEEDS)
        ]
        outcomes = execute(jobs)
        for k in part:
            values = [outcomes[f"{k}/{s}"].value for s in range(SEEDS)]
            loss = math.inf if None in values else sum(v for v in values if v) / SEEDS
            rows.add({"kind": "confirmed", "task": task, "key": k, "loss": loss})


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, required=True, help="where results are kept")
    parser.add_argument("--tasks", nargs="+", choices=list(SCENARIOS), default=list(SCENARIOS))
    parser.add_argument("--tuners", nargs="+", choices=list(TUNERS), default=list(TUNERS))
    parser.add_argument("--repetitions", type=int, default=10)
    parser.add_argument("--first", type=int, default=100, help="number of the first repetition")
    parser.add_argument("--budget", type=int, default=7_000, help="steps of a peer")
    parser.add_argument("--peers", type=Path, help="a folder with packages: ray")
    parser.add_argument("--report", action="store_true", help="print the table of what there is")
    arguments = parser.parse_args()
    if arguments.peers:
        sys.path.append(str(arguments.peers))
    torch.set_num_threads(1)
    rows = Rows(arguments.json)
    for task in [] if arguments.report else arguments.tasks:
        started = time.process_time()
        repetitions = range(arguments.first, arguments.first + arguments.repetitions)
        run_studies(rows, task, arguments.tuners, repetitions, arguments.budget)
        spent = time.process_time() - started
        print(f"{task}: {spent:.0f} s of CPU time", file=sys.stderr, flush=True)
        confirm(rows, task)
    print(report(rows.rows, arguments.tasks, CHECKPOINTS))


if __name__ == "__main__":
    main()
