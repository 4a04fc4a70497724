"""What a trial tells of its model's layers: a few looks at a run, small enough to store."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from optimizers import Monitor
from optimizers.monitor import Report

LOOKS = 4  # at the first step, and after each quarter of the run
MOST_LAYERS = 32


def watch(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    steps: int,
    done: int,
    looks: list[dict[str, Any]],
) -> None:
    """Append to `looks` at a few of the steps to come; `done` of them are over already."""
    monitor = Monitor(model, every=math.ceil(steps / LOOKS), history=LOOKS)
    monitor.step = done
    monitor.attach(optimizer)

    def note(*_: object) -> None:
        report = monitor.last
        if report is not None and report.step == monitor.step:
            looks.append(summary(report))

    optimizer.register_step_post_hook(note)


def summary(report: Report) -> dict[str, Any]:
    """A report as JSON: per layer gradient norm, update over weight, verdict.

    Of a large model it keeps what is not well, and a sample of the rest.
    """
    return {
        "step": report.step,
        "layers": {
            name: {
                "grad_norm": _short(report.layers[name].grad_norm),
                "update_ratio": _short(report.layers[name].update_ratio),
                "verdict": report.verdicts[name],
            }
            for name in _kept(report)
        },
    }


def _kept(report: Report) -> list[str]:
    sick = [name for name, verdict in report.verdicts.items() if verdict != "ok"][:MOST_LAYERS]
    well = [name for name, verdict in report.verdicts.items() if verdict == "ok"]
    room = MOST_LAYERS - len(sick)
    sample = well[:: math.ceil(len(well) / room)] if room and well else []
    kept = {*sick, *sample}
    return [name for name in report.layers if name in kept]


def _short(value: float | None) -> float | None:
    """Four digits; None for what JSON has no number for."""
    return float(f"{value:.4g}") if value is not None and math.isfinite(value) else None
