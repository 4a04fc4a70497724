"""What short runs first and early stopping save, and what they cost in final quality.

Each repetition searches every arm of a shipped study twice, with the same study seed: all trials at
full length and to their end, and as a study does by default. Both ways then confirm their best
configurations and run the chosen one on fresh seeds, the same for both. The table shows the steps
of exploration (range tests are the same for both) and the final score, in pairs of repetitions and
arms, with 95 % t intervals.

    python -m benchmarks.early_stopping --json results.jsonl [--repetitions 6] [STUDY ...]

Runs of different repetitions train as one stack of models (`trial_batches`), so that their steps
cost a fraction of what they cost alone; the numbers are those of `tuner.training` up to rounding.
A finished search is a line of the file; a second call goes on where the first one stopped.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.together import Together, Train
from tuner.compare.statistics import t_interval
from tuner.jobs import Places, job_of
from tuner.records import LrCurve, Trial
from tuner.runner import metric_values
from tuner.spec import StudySpec, load_spec
from tuner.stages import History, judged_trials, next_trials

STUDIES = ("digits", "mnist", "tabular")
ROOT = Path(__file__).resolve().parents[1]
# The same protocol for both but for what is measured.
COMMON = (
    *("budget.calibrate_seeds=0", "budget.extend_trials=0", "budget.confirm_seeds=3"),
    *("budget.confirm_top=2", "budget.decide_seeds=5", "budget.decide_looks=1", "run.slots=1"),
)
WAYS = {
    "full": ("budget.screen_length=1.0", "run.prune=false"),
    "default": (),
}


def study(name: str, way: str, repetition: int) -> StudySpec:
    """A shipped study, one way."""
    overrides = (*COMMON, *WAYS[way], f"study.seed={repetition}")
    return load_spec(ROOT / "studies" / f"{name}.toml", overrides)


def run_study(spec: StudySpec, train: Train) -> History:
    """Run a study, one trial after the other."""
    trials: dict[int, Trial] = {}
    curves: dict[int, LrCurve] = {}
    values: dict[int, list[float]] = {}
    places = Places((str(ROOT),), Path("/nonexistent"))
    while True:
        planned = list(next_trials(spec, History(trials, curves, values)))
        if not planned:
            return History(trials, curves, values)
        jobs = [job_of(spec, trial, places) for trial in planned]
        outcomes = train([job.model_copy(update={"checkpoint": None}) for job in jobs])
        for trial, outcome in zip(planned, outcomes, strict=True):
            if outcome.failure is not None and outcome.failure.kind != "diverged":
                raise RuntimeError(f"trial {trial.number}: {outcome.failure.message}")
            number = trial.number
            values[number] = metric_values(outcome.evaluations, spec.study.metric)
            if outcome.lr_curve is not None:
                curves[number] = outcome.lr_curve
            done = outcome.state in ("completed", "pruned")
            trials[number] = trial.model_copy(
                update={
                    "state": outcome.state,
                    "value": outcome.value if done else None,
                    "steps": len(outcome.lrs),
                    "wall_seconds": outcome.wall_seconds,
                }
            )


def measure(name: str, way: str, repetition: int, train: Train) -> dict[str, Any]:
    """One line of the results."""
    spec = study(name, way, repetition)
    history = run_study(spec, train)
    explored = [*history.of("screen"), *history.of("explore")]
    arms = {}
    for arm in spec.arms:
        judged = judged_trials(spec, history, arm.name)
        scores = [t.value for t in judged]
        arms[arm.name] = {
            "steps": sum(t.steps for t in explored if t.arm == arm.name),
            "score": None if None in scores or not scores else statistics.fmean(scores),
            "params": judged[0].params if judged else {},
        }
    return {
        "study": name,
        "way": way,
        "repetition": repetition,
        "direction": spec.study.direction,
        "arms": arms,
    }


def interval(values: list[float]) -> str:
    """Mean and 95 % interval."""
    mean = statistics.fmean(values)
    found = t_interval(values) if len(values) > 1 else None
    return f"{mean:+.4f}" if found is None else f"{mean:+.4f} [{found.low:+.4f}, {found.high:+.4f}]"


def table(rows: list[dict[str, Any]]) -> str:
    """What was saved, and the final score of the default way minus that of the full one."""
    lines = [
        f"{'study':10s} {'pairs':>5s} {'full steps':>11s} {'default':>9s} {'saved':>6s}"
        f" {'score full':>11s} {'default':>9s}  better by (95 % interval)"
    ]
    known = {(r["study"], r["way"], r["repetition"]): r for r in rows}
    for name in dict.fromkeys(r["study"] for r in rows):
        repetitions = sorted({r["repetition"] for r in rows if r["study"] == name})
        both = [
            (known[name, "full", n], known[name, "default", n])
            for n in repetitions
            if all((name, way, n) in known for way in WAYS)
        ]
        pairs = [
            (full["arms"][arm], default["arms"][arm])
            for full, default in both
            for arm in full["arms"]
            if full["arms"][arm]["score"] is not None and default["arms"][arm]["score"] is not None
        ]
        if not pairs:
            continue
        steps = [sum(arm["steps"] for arm in side) for side in zip(*pairs, strict=True)]
        scores = [
            statistics.fmean(arm["score"] for arm in side) for side in zip(*pairs, strict=True)
        ]
        better = 1 if both[0][0]["direction"] == "maximize" else -1
        # One number a repetition: its arms share data and seeds.
        gains = [
            statistics.fmean(
                better * (d["arms"][a]["score"] - f["arms"][a]["score"])
                for a in f["arms"]
                if None not in (d["arms"][a]["score"], f["arms"][a]["score"])
            )
            for f, d in both
        ]
        lines.append(
            f"{name:10s} {len(pairs):5d} {steps[0]:11,d} {steps[1]:9,d}"
            f" {1 - steps[1] / steps[0]:6.0%} {scores[0]:11.4f} {scores[1]:9.4f}  {interval(gains)}"
        )
    return "\n".join(lines)


def main() -> None:
    """Run what is missing and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("studies", nargs="*", default=STUDIES, metavar="STUDY")
    parser.add_argument("--repetitions", type=int, default=6)
    parser.add_argument("--json", type=Path, required=True, help="results, a line each")
    options = parser.parse_args()
    rows = []
    if options.json.exists():
        rows = [json.loads(line) for line in options.json.read_text().splitlines()]
    known = {(r["study"], r["way"], r["repetition"]) for r in rows}
    lock = threading.Lock()

    def one(name: str, way: str, repetition: int) -> Callable[[Train], None]:
        def function(train: Train) -> None:
            row = measure(name, way, repetition, train)
            with lock, options.json.open("a") as file:
                file.write(json.dumps(row) + "\n")
                rows.append(row)
            sys.stderr.write(f"{name} {way} {repetition}\n")

        return function

    for name in options.studies:
        missing = [
            (name, way, repetition)
            for repetition in range(options.repetitions)
            for way in WAYS
            if (name, way, repetition) not in known
        ]
        Together().run([one(*keys) for keys in missing])
    print(table(rows))


if __name__ == "__main__":
    main()
