"""The best known configuration of every task of `compute_to_answer`, by a search without a budget.

    python -m benchmarks.best_known --json runs.jsonl [--tasks NAME ...] [--answers FILE]

Quasi-random points over the whole space, two rounds around the best of them, five seeds for the
best sixteen, twenty for the best three, and forty for the best of these: only these last ones,
which chose nothing, count. The smallest of three means is a lucky one: on digits it was 4 % below
what the same configuration gives on fresh seeds. With --answers the best answers of a file of
`compute_to_answer` are judged beside the sixteen: what a tuner found is known, too. Results are
appended to the file, so that a run that was stopped goes on.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from statistics import fmean

import numpy as np
import torch
from scipy.stats import qmc

from benchmarks.answer_scenarios import SCENARIOS, Scenario
from benchmarks.trial_batches import execute
from tuner.space import Point

KNOWN = Path(__file__).with_name("best_known.json")
FIRST, ROUND, ROUNDS, PARENTS = 128, 64, 2, 12
FINALISTS, FINALIST_SEEDS, BEST, BEST_SEEDS = 16, 5, 3, 20
REPORT_SEEDS, ANSWERS = 40, 8
# Seeds of their own to find, to choose, to judge and to report; no repetition from 100 on has them.
FIND, CHOOSE, JUDGE, REPORT = 30_000, 31_000, 32_000, 950_000_000


def fractions(scenario: Scenario, point: Point) -> np.ndarray:
    """A point's place in the unit cube."""
    return np.array([d.fraction(point[d.name]) for d in scenario.space])


def at(scenario: Scenario, place: np.ndarray) -> Point:
    """The point at a place of the unit cube."""
    clipped = np.clip(place, 0, 1 - 1e-9)
    return {d.name: d.at(float(f)) for d, f in zip(scenario.space, clipped, strict=True)}


class Memory:
    """Runs that are done, in a file of one JSON object a line."""

    def __init__(self, path: Path, scenario: Scenario) -> None:
        self.path, self.scenario = path, scenario
        self.done: dict[str, float] = {}
        for line in path.read_text().splitlines() if path.exists() else []:
            row = json.loads(line)
            if row["task"] == scenario.task:
                self.done[row["key"]] = math.inf if row["value"] is None else row["value"]

    def values(self, runs: list[tuple[Point, int]]) -> list[float]:
        """The loss of each run; infinite where it diverged."""
        keys = [json.dumps([p, s]) for p, s in runs]
        missing = [(k, r) for k, r in zip(keys, runs, strict=True) if k not in self.done]
        for start in range(0, len(missing), 96):
            part = missing[start : start + 96]
            jobs = [self.scenario.job(k, p, s) for k, (p, s) in part]
            outcomes = execute(jobs)
            with self.path.open("a") as file:
                for key, _ in part:
                    value = outcomes[key].value
                    self.done[key] = math.inf if value is None else value
                    row = {"task": self.scenario.task, "key": key, "value": value}
                    file.write(json.dumps(row) + "\n")
        return [self.done[k] for k in keys]


def best_known(scenario: Scenario, path: Path, answers: list[Point]) -> dict[str, object]:
    """The best configuration, its mean loss over fresh seeds and its standard error."""
    memory = Memory(path, scenario)
    rng = np.random.default_rng(0)
    dims = len(scenario.space)
    places = list(qmc.Sobol(dims, rng=0).random(FIRST))
    tried = [(at(scenario, p), FIND + i) for i, p in enumerate(places)]
    values = memory.values(tried)
    for number in range(ROUNDS):
        parents = np.argsort(values)[:PARENTS]
        spread = 0.12 / (number + 1)
        for i in range(ROUND):
            parent = fractions(scenario, tried[parents[i % PARENTS]][0])
            place = parent + rng.normal(size=dims) * spread
            tried.append((at(scenario, np.clip(place, 0, 1)), FIND + len(tried)))
        values = memory.values(tried)
    finalists = [tried[i][0] for i in np.argsort(values)[:FINALISTS]] + answers
    means = _means(memory, finalists, CHOOSE, FINALIST_SEEDS)
    leaders = [finalists[i] for i in np.argsort(means)[:BEST]]
    best = leaders[int(np.argmin(_means(memory, leaders, JUDGE, BEST_SEEDS)))]
    runs = memory.values([(best, REPORT + s) for s in range(REPORT_SEEDS)])
    error = float(np.std(runs, ddof=1) / math.sqrt(REPORT_SEEDS))
    return {"point": best, "loss": fmean(runs), "standard_error": error}


def best_answers(path: Path | None, task: str) -> list[Point]:
    """The answers of tuners with the lowest confirmed losses."""
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path else []
    mine = [r for r in rows if r["kind"] == "confirmed" and r["task"] == task]
    return [json.loads(r["key"])[0] for r in sorted(mine, key=lambda r: r["loss"])[:ANSWERS]]


def _means(memory: Memory, points: list[Point], first: int, seeds: int) -> list[float]:
    values = memory.values([(p, first + s) for p in points for s in range(seeds)])
    return [fmean(values[i : i + seeds]) for i in range(0, len(values), seeds)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, required=True, help="where runs are kept")
    parser.add_argument("--tasks", nargs="+", choices=list(SCENARIOS), default=list(SCENARIOS))
    parser.add_argument("--answers", type=Path, help="a file of compute_to_answer")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    known = json.loads(KNOWN.read_text()) if KNOWN.exists() else {}
    for name in arguments.tasks:
        answers = best_answers(arguments.answers, name)
        known[name] = best_known(SCENARIOS[name], arguments.json, answers)
        print(name, known[name], flush=True)
        KNOWN.write_text(json.dumps(known, indent=2) + "\n")


if __name__ == "__main__":
    main()
