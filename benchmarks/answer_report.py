"""The table of `compute_to_answer`, and whether the targets are met."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.answer_tuners import OURS, TUNERS

KNOWN = Path(__file__).with_name("best_known.json")
NEAR = 0.10  # steps to this regret are compared


def report(rows: Sequence[dict[str, Any]], tasks: Sequence[str], steps: Sequence[int]) -> str:
    """For people: regret against steps, optimism, and the targets."""
    known = json.loads(KNOWN.read_text())
    confirmed = {(r["task"], r["key"]): r["loss"] for r in rows if r["kind"] == "confirmed"}
    lines: list[str] = []
    for task in tasks:
        mine = [r for r in rows if r["kind"] == "study" and r["task"] == task]
        if not mine or task not in known:
            continue
        best = known[task]["loss"]
        lines += [
            "",
            f"### {task}: best known loss {best:.4g} ± {known[task]['standard_error']:.2g}",
            "",
            "Regret in % of the best known loss, median (quartiles), after so many steps:",
            "",
            "| tuner | studies | " + " | ".join(f"{s:,}" for s in steps) + " | optimism |",
            "|---|---|" + "---|" * (len(steps) + 1),
        ]
        table = {}
        for tuner in TUNERS:
            studies = [r for r in mine if r["tuner"] == tuner]
            if studies:
                table[tuner] = regrets(studies, task, best, confirmed, steps)
                cells = [cell(table[tuner][k]) for k in range(len(steps))]
                told = 100 * float(np.median(optimism(studies, task, confirmed)))
                row = [tuner, str(len(studies)), *cells, f"{told:+.1f} %"]
                lines.append("| " + " | ".join(row) + " |")
        lines += ["", *targets(mine, task, table, confirmed, steps)]
    return "\n".join(lines)


def chosen(study: dict[str, Any], steps: float) -> dict[str, Any] | None:
    """The answer of a study after so many steps."""
    return next((c for c in reversed(study["choices"]) if c["steps"] <= steps), None)


def loss_of(
    study: dict[str, Any], task: str, confirmed: dict[tuple[str, str], float], steps: float
) -> float:
    """The confirmed loss of a study's answer; infinite without an answer."""
    choice = chosen(study, steps)
    if choice is None:
        return math.inf
    return confirmed.get((task, json.dumps([choice["point"], study["repetition"]])), math.nan)


def regrets(
    studies: Sequence[dict[str, Any]],
    task: str,
    best: float,
    confirmed: dict[tuple[str, str], float],
    steps: Sequence[int],
) -> np.ndarray:
    """Shape (steps, studies)."""
    return np.array([[loss_of(r, task, confirmed, s) / best - 1 for r in studies] for s in steps])


def cell(values: np.ndarray) -> str:
    """Median and quartiles in percent."""
    low, middle, high = (quantile(values, q) for q in (0.25, 0.5, 0.75))
    return f"{100 * middle:.1f} ({100 * low:.1f}..{100 * high:.1f})" if middle < 99 else "-"


def quantile(values: np.ndarray, q: float) -> float:
    """A quantile of values that may be infinite."""
    ordered = np.sort(values)
    place = q * (len(ordered) - 1)
    below, above = ordered[math.floor(place)], ordered[math.ceil(place)]
    return float(below if below == above else below + (above - below) * (place % 1))


def optimism(
    studies: Sequence[dict[str, Any]], task: str, confirmed: dict[tuple[str, str], float]
) -> list[float]:
    """How much worse the last answer confirms than its tuner says, as a share."""
    return [
        loss_of(r, task, confirmed, math.inf) / r["choices"][-1]["reported"] - 1
        for r in studies
        if r["choices"]
    ]


def steps_to(table: np.ndarray, steps: Sequence[int]) -> float:
    """The first checkpoint from which on the median regret is near."""
    near = [quantile(row, 0.5) <= NEAR for row in table]
    return next((s for k, s in enumerate(steps) if all(near[k:])), math.inf)


def targets(
    mine: Sequence[dict[str, Any]],
    task: str,
    table: dict[str, np.ndarray],
    confirmed: dict[tuple[str, str], float],
    steps: Sequence[int],
) -> list[str]:
    """One line a target and preset: what was asked, what was found."""
    peers = {name: values for name, values in table.items() if name not in OURS}
    lines = []
    for name in [n for n in OURS if n in table and peers]:
        studies = [r for r in mine if r["tuner"] == name]
        bill = max(r["choices"][-1]["steps"] for r in studies if r["choices"])
        place = next((k for k, s in enumerate(steps) if s >= bill), len(steps) - 1)
        regret = quantile(table[name][place], 0.5)
        rival = min(quantile(values[place], 0.5) for values in peers.values())
        told = float(np.median(optimism(studies, task, confirmed)))
        own, other = steps_to(table[name], steps), min(steps_to(v, steps) for v in peers.values())
        checks = [
            (f"median regret {100 * regret:.1f} % (asked: 5)", regret <= 0.05),
            (f"best peer's {100 * rival:.1f} % (asked: half)", regret <= 0.5 * rival),
            (f"steps to 10 % {own:,.0f} against {other:,.0f} (asked: half)", own <= 0.5 * other),
            (f"confirmed over reported {100 * told:+.1f} % (asked: 2)", told <= 0.02),
        ]
        lines.append(f"- {name}, {bill:,} steps at most, at the checkpoint {steps[place]:,}:")
        lines += [f"  - {'met' if met else 'MISSED'}: {text}" for text, met in checks]
    return lines
