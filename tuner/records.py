"""The values that travel between coordinator, workers and store: immutable, and JSON both ways.

A `Trial` is one planned training run. The coordinator turns it into a `Job`, a worker answers
with `Evaluation`s while it runs and one `Outcome` at its end, and the store keeps all of them.
Nothing here imports torch, so a coordinator and the command line stay light.
"""

from __future__ import annotations

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


class LrCurve(Record):
    """A learning-rate range test and what it suggests.

    `points` are (learning rate, loss) pairs. Suggestion and bounds are None when the test refuses
    to suggest; `flags` and `reason` say why.
    """

    points: list[tuple[float, float]]
    suggested_lr: float | None
    low: float | None  # lower end of the search box handed to a study
    high: float | None
    diverges_at: float | None
    flags: list[str] = []
    reason: str = ""


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
