"""The values that travel between coordinator, workers and store: immutable, and JSON both ways.

A `Trial` is one planned training run. The coordinator turns it into a `Job`, a worker answers
with `Evaluation`s while it runs and one `Outcome` at its end, and the store keeps all of them.
Nothing here imports torch, so a coordinator and the command line stay light.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

Direction = Literal["minimize", "maximize"]
Stage = Literal["calibrate", "defaults", "lr-range", "screen", "explore", "confirm", "decide"]
TrialState = Literal["running", "interrupted", "completed", "diverged", "pruned", "failed"]
StudyState = Literal["running", "stopped", "completed", "failed"]
# usage_error: a name or argument that the task or the library does not have
FailureKind = Literal[
    "diverged", "out_of_memory", "killed", "user_error", "usage_error", "internal"
]
JobKind = Literal["check", "lr_range", "train"]


class Record(BaseModel):
    """Base of all records: frozen, no unknown keys, and NaN or infinity survive JSON."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="constants")


class Failure(Record):
    """Why a run did not complete."""

    kind: FailureKind
    message: str  # one line
    traceback: str = ""  # "user_error": the user's part of the stack; "internal" (our bug): all


class Configuration(Record):
    """Everything that defines a training run but its seed and length."""

    optimizer: str  # a name of `optimizers.names()`
    optimizer_args: dict[str, Any] = {}  # lr, weight_decay, betas, clip_norm, ...
    wrapper: str | None = None  # around the optimizer: "sam", "asam", "lookahead"
    wrapper_args: dict[str, Any] = {}
    schedule: str = "constant"  # a name of `optimizers.schedules.names()`
    schedule_args: dict[str, Any] = {}
    batch_size: int  # the effective batch of one optimizer step, in examples


class StopRule(Record):
    """Stop a trial whose metric is worse than `threshold` at its evaluation number `evaluation`.

    Counted in evaluations (from 1), because runs of different batch sizes differ in steps.
    """

    evaluation: int
    threshold: float


class Job(Record):
    """What a worker needs to know; it never sees the database.

    Attributes:
        id: unique among the jobs of one executor.
        kind: "check" tries one batch, "lr_range" is a range test, "train" trains.
        task: `package.module:callable`, imported from `search_path` and then `sys.path`.
        max_steps: optimizer steps of the whole run; None with `max_epochs` or `max_examples`.
        evaluations: how many validation passes are spread evenly over the run, the last at its end.
        stop_rules: early stopping, fixed when the trial is planned so that a rerun is identical.
        range_steps: what an LR range test may cost, in optimizer steps; None for its own choice.
        range_method: "forks", or "quick" for a single ramp.
        range_axis: what it moves (`LrCurve.axis`); None for the optimizer's own.
        range_on: whose loss judges the short runs: held-out "train" batches, or "val".
        micro_batch: the largest batch that fits in memory; below `batch_size`: accumulation.
        checkpoint: a file that the run may resume from and saves to; None = no checkpoints.
        checkpoint_seconds: the shortest time between two checkpoints.
    """

    id: str
    kind: JobKind
    task: str
    search_path: tuple[str, ...] = ()
    configuration: Configuration
    seed: int
    metric: str = "loss"
    direction: Direction = "minimize"
    max_steps: int | None = None
    max_epochs: float | None = None
    max_examples: int | None = None
    evaluations: int = 10
    stop_rules: tuple[StopRule, ...] = ()
    range_steps: int | None = None
    range_method: Literal["forks", "quick"] = "forks"
    range_axis: str | None = None
    range_on: Literal["train", "val"] = "train"
    micro_batch: int | None = None
    checkpoint: str | None = None
    checkpoint_seconds: float = 30.0


class Evaluation(Record):
    """One validation pass during a run."""

    step: int  # optimizer steps done
    examples: int  # training examples seen
    seconds: float  # training time since the start of the run, validation excluded
    lr: float  # learning rate of the last step
    train_loss: float  # mean over the steps since the previous evaluation
    grad_norm: float  # mean global norm before clipping over the same steps
    metrics: dict[str, float]  # validation metrics, "loss" among them


# Rates are searched up to so much below the one that exploded: a whole run is longer than the test.
BELOW_DIVERGENCE = 1.5


class LrCurve(Record):
    """A learning-rate range test and what it suggests.

    Suggestion and bounds are None when the test refuses to suggest; `flags` and `reason` say why.

    Attributes:
        points: (learning rate, loss) of the ramp, one for each of its batches.
        grid: (steps, learning rate, held-out loss) of the short runs; a diverged one is infinite.
        optima: (steps, learning rate) that was best for runs of that length.
        low, high: the search box handed to a study.
        interval_low, interval_high: 80 % interval of the best peak learning rate.
        safe_low, safe_high: rates whose runs lose little against the best one.
        diverges_at: the lowest rate at which training was seen to explode.
        axis: what was moved: "lr", "adamw_lr" of a rule with a partner, "d_coef" of Prodigy.
        method: "forks", or "quick" for a single ramp.
        run_steps: length of the run that the suggestion is for.
        cost: what the test took, in optimizer steps (a forward pass alone is a third of one).
    """

    points: list[tuple[float, float]]
    suggested_lr: float | None
    low: float | None
    high: float | None
    diverges_at: float | None
    flags: list[str] = []
    reason: str = ""
    interval_low: float | None = None
    interval_high: float | None = None
    safe_low: float | None = None
    safe_high: float | None = None
    grid: list[tuple[int, float, float]] = []
    optima: list[tuple[int, float]] = []
    axis: str = "lr"
    method: str = "quick"
    run_steps: int | None = None
    cost: float = 0.0

    @property
    def headline(self) -> str:
        """The answer in one line, with its interval, search box and flags."""
        if self.suggested_lr is None:
            return f"no suggestion ({', '.join(self.flags)})"
        name = "learning rate" if self.axis == "lr" else self.axis
        parts = [f"suggested {name} {self.suggested_lr:.3g}"]
        if self.interval_low is not None and self.interval_high is not None:
            parts.append(f"80 % interval {self.interval_low:.2g} to {self.interval_high:.2g}")
        if self.low is not None and self.high is not None:
            parts.append(f"search {self.low:.2g} to {self.high:.2g}")
        if self.flags:
            parts.append(f"flags: {', '.join(self.flags)}")
        return ", ".join(parts)


class Outcome(Record):
    """What became of a job.

    `value` is the metric at the end of the run (its last evaluation when pruned; None otherwise),
    or the suggested learning rate of a range test.
    """

    job_id: str
    state: Literal["completed", "diverged", "pruned", "failed", "cancelled"]
    value: float | None = None
    evaluations: list[Evaluation] = []
    lrs: list[float] = []  # the learning rate of every step
    lr_curve: LrCurve | None = None
    failure: Failure | None = None
    wall_seconds: float = 0.0
    device: str = ""  # "cpu", "cuda:GPU-<uuid> (NVIDIA H100)"
    info: dict[
        str, Any
    ] = {}  # check: metrics' names, sizes; train: parameters, skipped steps, peak memory


class Trial(Record):
    """One planned, running or finished run of a study; a row of the store.

    `number` is fixed by the plan and not by the order of completion, so that an interrupted and
    resumed study has the same trials as an uninterrupted one.
    """

    number: int
    arm: str
    stage: Stage
    seed: int
    state: TrialState = "running"
    point: dict[str, float] = {}  # what the sampler proposed (learning rate at the reference batch)
    params: dict[str, Any] = {}  # what the run used: lr, batch_size, weight_decay, ...
    configuration: Configuration
    stop_rules: tuple[StopRule, ...] = ()
    length: float = 1.0  # of a full trial; below it a shorter run, its schedule rescaled
    value: float | None = None
    metrics: dict[str, float] = {}  # all metrics of the last evaluation
    steps: int = 0
    examples: int = 0  # training examples seen
    wall_seconds: float = 0.0
    attempts: int = 1
    micro_batch: int | None = None
    device: str = ""
    host: str = ""
    started_at: datetime | None = None  # UTC
    finished_at: datetime | None = None
    failure: Failure | None = None
    provenance: dict[str, Any] = {}  # code version, task, package versions
    info: dict[str, Any] = {}


class Study(Record):
    """A study's row: its resolved specification and where it stands."""

    name: str
    state: StudyState
    spec: dict[str, Any]  # `StudySpec.model_dump(mode="json")`, every preset value filled in
    created_at: datetime
    updated_at: datetime
    answer: str = ""
    stop_requested: bool = False
    provenance: dict[str, Any] = {}


def setting(value: Any) -> str:
    """A hyperparameter as a person would type it."""
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def assigned(params: Mapping[str, Any]) -> str:
    """`lr=0.003  batch_size=1024`; what has no value is left out."""
    return "  ".join(f"{k}={setting(v)}" for k, v in params.items() if v is not None)
