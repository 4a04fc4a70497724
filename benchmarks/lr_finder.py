"""Accuracy of LR finders: this one's, fastai's, torch-lr-finder's and Lightning's.

    python -m benchmarks.lr_finder --json lr_finder.jsonl

The truth of a task and optimizer is the peak learning rate with the lowest mean validation loss of
whole warm-up+cosine runs, on a quarter-decade grid with four seeds. What a suggestion loses against
it comes from whole runs at both with four other seeds: the lowest of many noisy losses is too low,
judged by the seeds that chose it. Every result is appended to the file as soon as it is there; a
second call goes on where the first one stopped and prints the table.
benchmarks/LR_FINDER.md has what it needs, and the figures.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import lr_peers
from benchmarks.lr_population import train
from benchmarks.lr_tasks import OPTIMIZERS, TASKS, BenchTask, get_task, grid
from tuner import find_lr

OURS = "tuner.find_lr"
OURS_QUICK = "tuner.find_lr, quick"
TRUTH_SEEDS, JUDGE_SEEDS = (100, 101, 102, 103), (200, 201, 202, 203)
METHODS = (OURS, OURS_QUICK, *lr_peers.PEERS)
Row = dict[str, Any]


def ours(task: BenchTask, optimizer: str, seed: int, quick: bool = False) -> Row:
    """One call of `find_lr` for a run of the task's normal length."""
    model, stepper, loader = lr_peers.setup(task, optimizer, seed, task.steps)
    result = find_lr(model, stepper, loader, task.loss, quick=quick)
    return {
        "lr": result.suggested_lr,
        "interval": [result.interval_low, result.interval_high],
        "cost": result.cost / task.steps,
        "flags": result.flags,
        "optima": result.optima,
        "grid": result.grid,
    }


class Results:
    """Rows in a JSON-lines file, by their key."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: dict[tuple[Any, ...], Row] = {}
        if path.exists():
            for line in path.read_text().splitlines():
                row = json.loads(line)
                self.rows[self.key(row)] = row

    @staticmethod
    def key(row: Row) -> tuple[Any, ...]:
        """What a row is about."""
        return tuple(row.get(name) for name in ("kind", "method", "task", "optimizer", "seed"))

    def get(self, *key: Any) -> Row | None:
        """The row of a key, if it is there."""
        return self.rows.get(key)

    def add(self, row: Row) -> None:
        """Append a row, on disk first."""
        with self.path.open("a") as file:
            file.write(json.dumps(row) + "\n")
        self.rows[self.key(row)] = row


def measure(
    results: Results,
    tasks: list[str],
    chosen: list[str],
    seeds: int,
    methods: list[str],
    losses: bool,
) -> None:
    """Everything that is not in the file yet."""
    peers = lr_peers.installed()
    for name in tasks:
        task = get_task(name)
        for optimizer in chosen:
            about = {"task": name, "optimizer": optimizer}
            if results.get("truth", None, name, optimizer, None) is None:
                lrs = grid(optimizer)
                values = train(task, optimizer, lrs, TRUTH_SEEDS, task.steps)["val"]
                results.add({"kind": "truth", **about, "lrs": lrs, "losses": values.tolist()})
            for seed in range(seeds):
                for method in methods:
                    missing = method in lr_peers.PEERS and method not in peers
                    if missing or results.get("find", method, name, optimizer, seed) is not None:
                        continue
                    started = time.perf_counter()
                    if method in peers:
                        row: Row = {"lr": peers[method](task, optimizer, seed)}
                    else:
                        row = ours(task, optimizer, seed, quick=method == OURS_QUICK)
                    row["seconds"] = time.perf_counter() - started
                    results.add({"kind": "find", "method": method, **about, "seed": seed, **row})
            if losses:
                judge(results, task, optimizer)
            print(f"{name} {optimizer}: done", flush=True)


def judge(results: Results, task: BenchTask, optimizer: str) -> None:
    """Whole runs at all that was suggested and at the truth, with seeds that chose nothing."""
    truth = results.get("truth", None, task.name, optimizer, None)
    assert truth is not None
    about = {"task": task.name, "optimizer": optimizer}
    found = [row for row in results.rows.values() if about.items() <= row.items()]
    wanted = {row["lr"] for row in found if row["kind"] == "find" and row["lr"]}
    wanted |= {truth["lrs"][k] for k in (best_index(truth), *picks(truth))}
    known = results.get("judged", None, task.name, optimizer, None)
    lrs = [] if known is None else known["lrs"]
    missing = sorted(wanted.difference(lrs))
    if missing:
        losses = train(task, optimizer, missing, JUDGE_SEEDS, task.steps)["val"].tolist()
        if known is not None:
            losses = [old + new for old, new in zip(known["losses"], losses, strict=True)]
        results.add({"kind": "judged", **about, "lrs": lrs + missing, "losses": losses})


def best_index(truth: Row) -> int:
    """Of the rate with the lowest mean validation loss."""
    return int(np.argmin(mean_losses(truth)))


def picks(truth: Row) -> list[int]:
    """Index of the best rate for each seed of the truth alone."""
    return [int(k) for k in np.array(truth["losses"], dtype=float).argmin(1)]


def mean_losses(row: Row) -> np.ndarray:
    """Mean over seeds, for each learning rate."""
    return np.array(row["losses"], dtype=float).mean(0)


def lost(results: Results, truth: Row, lrs: list[float]) -> list[float]:
    """Relative losses against the truth's rate, as far as they were measured.

    None where a run at the truth's rate diverged with a judge's seed.
    """
    judged = results.get("judged", None, truth["task"], truth["optimizer"], None)
    if judged is None:
        return []
    at = dict(zip(judged["lrs"], mean_losses(judged).tolist(), strict=True))
    reference = at[truth["lrs"][best_index(truth)]]
    return [at[lr] / reference - 1 for lr in lrs if lr in at and math.isfinite(reference)]


def cases(results: Results, method: str, tasks: list[str], chosen: list[str]) -> Iterator[Row]:
    """Per task and optimizer: errors in decades, losses, intervals and costs over the seeds."""
    for task in tasks:
        for optimizer in chosen:
            truth = results.get("truth", None, task, optimizer, None)
            found = [
                row
                for key, row in results.rows.items()
                if key[:4] == ("find", method, task, optimizer)
            ]
            if truth is None or not found:
                continue
            exponent = math.log10(truth["lrs"][best_index(truth)])
            lrs = [row["lr"] for row in found if row["lr"]]
            held = [
                low <= 10**exponent <= high
                for low, high in (row.get("interval", [None, None]) for row in found)
                if low is not None
            ]
            yield {
                "task": task,
                "optimizer": optimizer,
                "best": exponent,
                "errors": [math.log10(lr) - exponent for lr in lrs],
                "losses": lost(results, truth, lrs),
                "held": held,
                "refused": len(found) - len(lrs),
                "costs": [row["cost"] for row in found if "cost" in row],
            }


def oracle(results: Results, tasks: list[str], chosen: list[str]) -> Iterator[Row]:
    """What whole runs at every rate of the grid say with one seed; the others have the best."""
    for task in tasks:
        for optimizer in chosen:
            truth = results.get("truth", None, task, optimizer, None)
            if truth is None:
                continue
            losses, exponents = np.array(truth["losses"], dtype=float), np.log10(truth["lrs"])
            others = [np.delete(losses, seed, 0).mean(0).argmin() for seed in range(len(losses))]
            chosen_lrs = [truth["lrs"][k] for k in picks(truth)]
            yield {
                "task": task,
                "optimizer": optimizer,
                "best": float(exponents[best_index(truth)]),
                "errors": (exponents[picks(truth)] - exponents[others]).tolist(),
                "losses": lost(results, truth, chosen_lrs),
                "held": [],
                "refused": 0,
                "costs": [float(len(exponents))] * len(losses),
            }


def summary(rows: list[Row]) -> str:
    """One line of the table."""
    errors = np.abs(np.concatenate([row["errors"] for row in rows]))
    losses = np.concatenate([row["losses"] for row in rows])
    spreads = [max(row["errors"]) - min(row["errors"]) for row in rows if row["errors"]]
    deviations = [float(np.std(row["errors"], ddof=1)) for row in rows if len(row["errors"]) > 1]
    held = [one for row in rows for one in row["held"]]
    costs = [one for row in rows for one in row["costs"]]
    cells = [
        f"{np.median(errors):.2f}",
        f"{np.quantile(errors, 0.9):.2f}",
        f"{np.median(spreads):.2f}",
        f"{max(spreads):.2f}",
        f"{np.median(deviations) if deviations else math.nan:.2f}",
        f"{100 * np.mean(held):.0f} %" if held else "none",
        f"{100 * np.median(losses):+.1f} %" if len(losses) else "not measured",
        f"{100 * np.mean(np.minimum(losses, 10)):+.1f} %" if len(losses) else "not measured",
        f"{np.mean(costs):.2f} / {max(costs):.2f}" if costs else "",
        str(sum(row["refused"] for row in rows)),
    ]
    return " | ".join(cells)


HEADER = (
    "| finder | median error | 90th percentile | spread (median) | spread (worst) | SD | "
    "interval holds | loss, median | loss, mean | cost mean / worst | refused |\n"
    "|---|---|---|---|---|---|---|---|---|---|---|"
)


def report(results: Results, tasks: list[str], chosen: list[str], details: bool) -> None:
    """The table, in Markdown; errors and spreads in decades, losses against the best."""
    print(HEADER)
    for method in METHODS:
        rows = list(cases(results, method, tasks, chosen))
        if rows:
            print(f"| {method} | {summary(rows)} |")
    rows = list(oracle(results, tasks, chosen))
    if rows:
        print(f"| all whole runs of one seed | {summary(rows)} |")
    if not details:
        return
    print("\n| task | optimizer | best | error median [min, max] | loss median | interval holds |")
    print("|---|---|---|---|---|---|")
    for row in cases(results, OURS, tasks, chosen):
        errors, losses = row["errors"], row["losses"] or [math.nan]
        print(
            f"| {row['task']} | {row['optimizer']} | {10 ** row['best']:.2g} | "
            f"{np.median(errors):+.2f} [{min(errors):+.2f}, {max(errors):+.2f}] | "
            f"{100 * np.median(losses):+.1f} % | {sum(row['held'])}/{len(row['held'])} |"
        )


def main() -> None:
    """Measure what is missing, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--optimizers", nargs="+", choices=OPTIMIZERS, default=list(OPTIMIZERS))
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--json", type=Path, default=Path("lr_finder.jsonl"))
    parser.add_argument("--no-losses", action="store_true", help="no whole runs at the suggestions")
    parser.add_argument("--report", action="store_true", help="only print what the file has")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    results = Results(arguments.json)
    if not arguments.report:
        measure(
            results,
            arguments.tasks,
            arguments.optimizers,
            arguments.seeds,
            arguments.methods,
            losses=not arguments.no_losses,
        )
    report(results, arguments.tasks, arguments.optimizers, details=True)


if __name__ == "__main__":
    main()
