"""The report of several studies together: one HTML file that needs nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tuner.compare import wording
from tuner.compare.page import Plot, image, rendered
from tuner.compare.pooled import Pooled, PooledArm


def _row(pooled: Pooled, arm: PooledArm) -> dict[str, Any]:
    cells = [
        f"{mean:.4g} (rank {rank:g}; {wording.cost_amount(time, pooled.cost)})"
        for mean, rank, time in zip(arm.means, arm.ranks, arm.times, strict=True)
    ]
    return {
        "name": arm.name,
        "verdict": arm.verdict,
        "mean_rank": f"{arm.mean_rank:.2f}",
        "iqm": f"{arm.iqm:.2f}",
        "interval": wording.span(arm.iqm_low, arm.iqm_high),
        "p_best": f"{arm.p_best:.2f}",
        "score": "-" if arm.score is None else f"{arm.score:.2f}",
        "speedup": "-" if arm.speedup is None else f"{arm.speedup:.2f}x",
        "cells": cells,
    }


def write_pooled_report(path: Path, pooled: Pooled) -> Path:
    """Write the report and return its path. Raises OSError when it cannot be written."""
    from tuner.compare import figures

    plots = [
        Plot("How good is each arm over all tasks?", "Diamond: interquartile mean. Bar: interval; "
             "runs drawn anew within each task.", image(figures.pooled_figure(pooled))),
        Plot("How often is an arm near the fastest?", "Share of tasks on which its median time to "
             "target is within tau of the fastest arm's; a missed target never is.",
             image(figures.profile_figure(pooled))),
    ]  # fmt: skip
    heads = [
        f"{study}: {metric}" for study, metric in zip(pooled.studies, pooled.metrics, strict=True)
    ]
    page = rendered(
        "pooled.html",
        pooled=pooled,
        level=round(100 * (1 - pooled.alpha)),
        rows=[_row(pooled, arm) for arm in pooled.arms],
        heads=heads,
        wins=[
            {
                "arm": w.arm,
                "other": w.other,
                "p": f"{w.p:.2f}",
                "interval": wording.span(w.low, w.high),
            }
            for w in pooled.wins
        ],
        plots=plots,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page, encoding="utf-8")
    return path
