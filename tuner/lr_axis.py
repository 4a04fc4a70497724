"""Which numbers of an optimizer a range test moves, and how."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tuner.errors import UsageError


@dataclass(frozen=True)
class Axis:
    """The entries of param groups that are multiplied together; their ratios stay.

    `rows` are (group, key, ratio to the rate that is reported), `paced` are (group, value) whose
    learning rate only follows the schedule.
    """

    name: str
    rows: tuple[tuple[dict[str, Any], str, float], ...]
    paced: tuple[tuple[dict[str, Any], float], ...] = ()

    @property
    def start(self) -> float | None:
        """Where to look first, when a ramp cannot tell: Prodigy's rate grows with the steps."""
        if self.name != "d_coef":
            return None
        group, key, _ = self.rows[0]
        return float(group[key])

    @property
    def params(self) -> list[Tensor]:
        """The parameters whose entries are moved."""
        return [param for group, _, _ in self.rows for param in group["params"]]

    def set(self, lr: float, factor: float) -> None:
        """Every entry at `lr` times its ratio, scaled by the schedule's `factor`."""
        for group, key, ratio in self.rows:
            _write(group, key, lr * ratio * (factor if key == "lr" else 1.0))
        for group, value in self.paced:
            _write(group, "lr", value * factor)


def axis_of(optimizer: torch.optim.Optimizer, name: str | None = None) -> Axis:
    """The axis of an optimizer.

    By default the learning rates of all groups together; for Prodigy, whose learning rate is 1, its
    `d_coef`; for a rule with a partner (muon: matrices by its own rule, the rest by AdamW) the
    groups of its own rule. `name` chooses another: "lr", "d_coef", or "adamw_lr" for the partner.

    Raises UsageError for a name that no group has.
    """
    groups = optimizer.param_groups
    own = [group for group in groups if "rule" not in group]
    partner = [group for group in groups if "rule" in group]
    name = name or ("d_coef" if any("d_coef" in group for group in groups) else "lr")
    if name == "lr":
        return _moving("lr", own or partner, "lr", still=partner if own else [])
    if name == "adamw_lr" and partner:
        return _moving(name, partner, "lr", still=own)
    if all(name in group for group in groups) and isinstance(groups[0][name], (int, float)):
        paced = tuple((group, _base(group)) for group in groups)
        return Axis(name, _rows(groups, name), paced)
    there = {"adamw_lr": bool(partner), "d_coef": "d_coef" in groups[0]}
    allowed = ["lr", *(other for other, is_so in there.items() if is_so)]
    raise UsageError(f"axis = {name!r}: this optimizer has {', '.join(allowed)}")


def _moving(name: str, moved: list[dict[str, Any]], key: str, still: list[dict[str, Any]]) -> Axis:
    return Axis(name, _rows(moved, key), tuple((group, _base(group)) for group in still))


def _rows(groups: list[dict[str, Any]], key: str) -> tuple[tuple[dict[str, Any], str, float], ...]:
    """Ratios to the first group that has a rate; a scheduler's start (`initial_lr`) counts."""
    values = [_base(group) if key == "lr" else float(group[key]) for group in groups]
    first = next((value for value in values if value > 0), 0.0)
    ratios = [value / first if first else 1.0 for value in values]
    return tuple((group, key, ratio) for group, ratio in zip(groups, ratios, strict=True))


def _base(group: dict[str, Any]) -> float:
    value = group.get("initial_lr", group["lr"])
    return 1.0 if value is None else float(value)


def _write(group: dict[str, Any], key: str, value: float) -> None:
    before = group[key]
    group[key] = torch.full_like(before, value) if isinstance(before, Tensor) else value
