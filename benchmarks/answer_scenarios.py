"""What every tuner of `compute_to_answer` searches: tasks, one optimizer each, one space each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tuner.records import Configuration, Job
from tuner.space import Dimension, Point

STEPS = 300  # of a full trial
EVALUATIONS = 10


@dataclass(frozen=True)
class Scenario:
    """A task with the optimizer whose numbers are searched.

    The learning rate spans what somebody without a range test would give; points hold the
    learning rate that the run uses, whatever its batch size.
    """

    task: str
    optimizer: str
    schedule: str
    weight_decay: tuple[float, float]
    momentum: tuple[str, float, float]  # which number plays momentum's part, and its range
    optimizer_args: tuple[tuple[str, float], ...] = ()
    lr: tuple[float, float] = (1e-5, 1.0)
    batch_sizes: tuple[int, ...] = (16, 32, 64)

    @property
    def module(self) -> str:
        """The task as a study file names it."""
        return f"benchmarks.answer_tasks:{self.task}"

    @property
    def space(self) -> tuple[Dimension, ...]:
        """Learning rate, batch size and weight decay, and momentum as 1 - momentum."""
        name, low, high = self.momentum
        return (
            Dimension("lr", *self.lr, log=True),
            Dimension("batch_size", 0, 0, values=self.batch_sizes),
            Dimension("weight_decay", *self.weight_decay, log=True),
            Dimension(name, low, high, log=True, complement=True),
        )

    def configuration(self, point: Point) -> Configuration:
        """A run at a point."""
        args: dict[str, Any] = {**dict(self.optimizer_args), **point}
        batch_size = int(args.pop("batch_size"))
        return Configuration(
            optimizer=self.optimizer,
            optimizer_args=args,
            schedule=self.schedule,
            batch_size=batch_size,
        )

    def job(self, name: str, point: Point, seed: int) -> Job:
        """A full trial."""
        return Job(
            id=name,
            kind="train",
            task=self.module,
            configuration=self.configuration(point),
            seed=seed,
            max_steps=STEPS,
            evaluations=EVALUATIONS,
        )


_ADAMW: dict[str, Any] = {
    "optimizer": "adamw",
    "schedule": "warmup_cosine",
    "weight_decay": (1e-5, 1.0),
    "momentum": ("beta1", 0.5, 0.98),
}
_SGD: dict[str, Any] = {
    "optimizer": "sgd",
    "schedule": "cosine",
    "weight_decay": (1e-7, 1e-2),
    "momentum": ("momentum", 0.5, 0.99),
    "lr": (1e-5, 10.0),
}

SCENARIOS = {
    scenario.task: scenario
    for scenario in (
        Scenario("handwritten_digits", **_ADAMW),
        Scenario("mnist_pooled", **_SGD),
        Scenario("autoencoder", **_ADAMW),
        Scenario("characters", **_SGD),
        Scenario("diagnosis", **{**_ADAMW, "optimizer": "adam"}),
    )
}
