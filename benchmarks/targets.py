"""What the project wants of each measurement: ratios that may not be exceeded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

Row = Mapping[str, Any]

FUSED_BY_TORCH = ("sgd", "adagrad", "adam", "adamw", "amsgrad")
WHOLE_TENSORS = ("lamb", "lars", "adafactor", "muon", "soap")


@dataclass(frozen=True)
class Target:
    """Our time over another one of the same row, and the most it may be."""

    over: str
    most: float

    def ratio(self, row: Row) -> float | None:
        """Ours over theirs, or None when nobody has it."""
        other = COLUMNS[self.over](row)
        return None if other is None else row["ms"] / other[1]


def fastest(row: Row, *kinds: str) -> tuple[str, float] | None:
    """The quickest peer of these kinds, and its milliseconds."""
    found = [
        (peer["median"], f"{peer['library']} {peer['variant']}")
        for peer in row["peers"]
        if peer["kind"] in kinds and "median" in peer
    ]
    return (min(found)[1], min(found)[0]) if found else None


def bound(row: Row) -> tuple[str, float]:
    return ("memory bound", row["bound_ms"])


COLUMNS = {
    "fastest eager peer": lambda row: fastest(row, "eager"),
    "torch fused": lambda row: fastest(row, "fused"),
    "HeavyBall compiled": lambda row: fastest(row, "compiled"),
    "fastest peer": lambda row: fastest(row, "eager", "fused", "compiled"),
    "memory bound": bound,
}


def targets(rule: str, model: str, engine: str) -> tuple[Target, ...]:
    """What holds for one rule on one model with one engine."""
    if engine == "eager":
        return (Target("fastest eager peer", 1.2),)
    if rule in WHOLE_TENSORS:
        return (Target("fastest peer", 0.7),) if model != "many-small" else ()
    if model == "many-small":
        return (Target("torch fused", 0.3),)
    if rule in FUSED_BY_TORCH:
        return (Target("torch fused", 0.78),)
    return (
        Target("fastest eager peer", 0.5),
        Target("HeavyBall compiled", 1.0),
        Target("memory bound", 1.4),
    )
