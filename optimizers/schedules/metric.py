"""The schedule that waits for a metric to stop improving."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from optimizers.schedules.base import EMPTY, Schedule, number

MODES = ("min", "max")
START: Mapping[str, float] = {"best": math.inf, "bad": 0.0, "resting": 0.0, "scale": 1.0}


@dataclass(frozen=True, kw_only=True)
class Plateau(Schedule):
    """Multiplies by ``gamma`` after ``patience`` reported metrics without an improvement.

    A metric improves when it beats the best one by ``threshold`` of that one's size, which is
    right for negative metrics too; what is not a number never does. After a drop the next
    ``rest`` metrics are not held against it. The memory holds the best metric (negated for
    "max"), the metrics since then, the rest still to come, and the present factor.
    """

    name = "plateau"
    mode: str = "min"
    gamma: float = number(0.1, 0.1, 0.7, "factor of each drop", log=True, at_least=1e-12)
    patience: int = number(
        10, 2, 20, "metrics without improvement that are accepted", log=True, integer=True,
        at_most=1e9,
    )  # fmt: skip
    threshold: float = number(1e-4, 1e-5, 1e-2, "least relative improvement that counts", log=True)
    rest: int = number(0, 0, 5, "metrics after a drop that do not count", integer=True, at_most=1e9)
    floor: float = number(0.0, 0.0, 0.01, "least share of the learning rate")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.mode not in MODES:
            allowed = ", ".join(map(repr, MODES))
            raise ValueError(f"{self.name}: mode={self.mode!r} is not valid; allowed: {allowed}")

    def decay(self, progress: float) -> float:
        """Time alone changes nothing."""
        return 1.0

    def factor(self, step: int, total_steps: int, memory: Mapping[str, float] = EMPTY) -> float:
        """The warm-up times the drops so far."""
        return super().factor(step, total_steps) * memory.get("scale", 1.0)

    def observe(self, memory: Mapping[str, float], metric: float) -> dict[str, float]:
        """The memory after one more metric."""
        seen = {**START, **memory}
        cost = float(metric) if self.mode == "min" else -float(metric)
        best = seen["best"]
        margin = self.threshold * abs(best) if math.isfinite(best) else 0.0
        if cost < best - margin:
            seen |= {"best": cost, "bad": 0.0}
        else:
            seen["bad"] += 1
        if seen["resting"] > 0:
            seen |= {"resting": seen["resting"] - 1, "bad": 0.0}
        if seen["bad"] > self.patience:
            scale = max(self.floor, seen["scale"] * self.gamma)
            seen |= {"bad": 0.0, "resting": float(self.rest), "scale": scale}
        return seen

    @property
    def needs_total_steps(self) -> bool:
        """Only the warm-up needs it."""
        return self.warmup > 0
