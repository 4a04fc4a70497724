"""What MLflow should show of a study: pure functions from records to the contents of runs.

The live sink and `sync` both write what these return, so that the two cannot drift apart. All
times come from the records, so that writing the same run again changes nothing.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime
from typing import Any

import numpy as np
from pydantic_core import to_jsonable_python

from tuner.records import Configuration, Evaluation, LrCurve, Study, Trial
from tuner.store.models import storable_json

MAX_PARAM, MAX_TAG, MAX_KEY = 6000, 5000, 250  # characters that MLflow keeps of each
LR_CURVE_FILE = "lr_curve.json"
LR_CURVE_VALUES = (
    *("suggested_lr", "interval_low", "interval_high", "safe_low", "safe_high"),
    *("low", "high", "diverges_at", "cost"),
)
LR_POINTS = 200  # of a trial's learning rates; SQL has the rate of every step

STATUS = {
    "running": "RUNNING",
    "completed": "FINISHED",
    "failed": "FAILED",
    "diverged": "FAILED",
    "pruned": "KILLED",
    "interrupted": "KILLED",
    "stopped": "KILLED",
}


@dataclass(frozen=True)
class MetricPoint:
    """One value of one metric; `timestamp` in milliseconds since 1970."""

    key: str
    value: float
    step: int
    timestamp: int


@dataclass(frozen=True)
class RunView:
    """The contents of one MLflow run.

    Attributes:
        key: what the run stands for, unique within a study: "study", "arm:NAME", "trial:NUMBER".
        parent: the key of the run that it is nested in.
        started, ended: milliseconds since 1970.
        final: whether this is all there will be; a run that is not final is only begun.
        replaceable: whether a run with other contents is deleted first, and not just added to.
    """

    key: str
    parent: str | None
    name: str
    status: str
    started: int
    ended: int | None = None
    final: bool = True
    replaceable: bool = False
    params: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    metrics: tuple[MetricPoint, ...] = ()
    files: dict[str, str] = field(default_factory=dict)

    @property
    def digest(self) -> str | None:
        """A fingerprint of the contents; None when the run is not final."""
        if not self.final:
            return None
        return hashlib.sha256(json.dumps(asdict(self)).encode()).hexdigest()[:16]


def study_key(study: Study) -> str:
    """Tell a study from an earlier one of the same name."""
    identity = f"{study.name} {study.created_at.timestamp():.6f}"
    return hashlib.sha256(identity.encode()).hexdigest()[:16]


def study_view(study: Study) -> RunView:
    """The run at the top; it says how the study stands, and its answer."""
    ended = None if study.state == "running" else _milliseconds(study.updated_at)
    return RunView(
        key="study",
        parent=None,
        name=study.name,
        status=STATUS[study.state],
        started=_milliseconds(study.created_at),
        ended=ended,
        tags=_tags(
            {
                "tuner.study": study.name,
                "tuner.state": study.state,
                "tuner.answer": study.answer,
                "mlflow.note.content": study.answer,
            }
        ),
        files={"study.json": study.model_dump_json(indent=2, include={"name", "spec"})},
    )


def arm_key(arm: str) -> str:
    """The key of an arm's run."""
    return f"arm:{arm}"


def arm_view(
    study: Study,
    arm: str,
    optimizer: str,
    schedule: str,
    comparison: Mapping[str, Any] | None = None,
) -> RunView:
    """The run that holds an arm's trials; with a comparison also its numbers and verdict.

    `comparison` is the arm's entry of `tuner study compare --json`. Its numbers become metrics.
    """
    now = _milliseconds(study.updated_at)
    numbers = {
        key: float(value)
        for key, value in (comparison or {}).items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    }
    verdict = (comparison or {}).get("verdict", "")
    best = dict((comparison or {}).get("params") or {})
    return RunView(
        key=arm_key(arm),
        parent="study",
        name=arm,
        status=STATUS[study.state],
        started=_milliseconds(study.created_at),
        ended=None if study.state == "running" else now,
        final=comparison is not None,
        params=_params({"optimizer": optimizer, "schedule": schedule}),
        tags=_tags(
            {
                "tuner.study": study.name,
                "tuner.arm": arm,
                "tuner.verdict": verdict,
                "tuner.best_params": json.dumps(best, default=str) if best else "",
            }
        ),
        metrics=tuple(MetricPoint(_name(key), value, 0, now) for key, value in numbers.items()),
    )


def trial_view(
    study: Study,
    trial: Trial,
    evaluations: Sequence[Evaluation] = (),
    lrs: Sequence[float] = (),
    lr_curve: LrCurve | None = None,
) -> RunView:
    """The run of a trial: what it was given and all that it measured."""
    started = _milliseconds(trial.started_at or study.created_at)
    running = trial.state == "running"
    ended = started + round(1000 * trial.wall_seconds)
    if trial.finished_at is not None:
        ended = _milliseconds(trial.finished_at)
    curve_file = {} if lr_curve is None else {LR_CURVE_FILE: lr_curve.model_dump_json(indent=2)}
    return RunView(
        key=f"trial:{trial.number}",
        parent=arm_key(trial.arm),
        name=f"{trial.number:03d} {trial.stage} seed {trial.seed}",
        status=STATUS[trial.state],
        started=started,
        ended=None if running else ended,
        final=not running,
        replaceable=True,
        params=_trial_params(trial.params, trial.configuration, trial.seed),
        tags=_trial_tags(study, trial),
        metrics=(
            *_evaluation_points(evaluations, lrs, started),
            *_lr_curve_points(lr_curve, started),
            *_summary_points(trial, ended),
        ),
        files=curve_file,
    )


def _trial_params(
    params: Mapping[str, Any], configuration: Configuration, seed: int
) -> dict[str, str]:
    schedule_args = {f"schedule.{k}": v for k, v in configuration.schedule_args.items()}
    return _params(
        {
            "optimizer": configuration.optimizer,
            "schedule": configuration.schedule,
            "batch_size": configuration.batch_size,
            "seed": seed,
            **schedule_args,
            **configuration.optimizer_args,
            **params,
        }
    )


def _trial_tags(study: Study, trial: Trial) -> dict[str, str]:
    failure = trial.failure
    return _tags(
        {
            "tuner.study": study.name,
            "tuner.arm": trial.arm,
            "tuner.trial": trial.number,
            "tuner.stage": trial.stage,
            "tuner.seed": trial.seed,
            "tuner.state": trial.state,
            "tuner.failure": failure.kind if failure else "",
            "tuner.failure_message": failure.message if failure else "",
            "tuner.device": trial.device,
            "tuner.host": trial.host,
            "tuner.attempts": trial.attempts,
            "tuner.provenance": json.dumps(_as_stored(trial.provenance))
            if trial.provenance
            else "",
        }
    )


def _evaluation_points(
    evaluations: Sequence[Evaluation], lrs: Sequence[float], started: int
) -> list[MetricPoint]:
    points = []
    for e in evaluations:
        timestamp = started + round(1000 * e.seconds)
        values = {
            "train_loss": e.train_loss,
            "grad_norm": e.grad_norm,
            **{f"val_{name}": value for name, value in e.metrics.items()},
        }
        points += [
            MetricPoint(_name(key), value, e.step, timestamp) for key, value in values.items()
        ]
    rates = {e.step: e.lr for e in evaluations}
    count = min(LR_POINTS, len(lrs))
    sampled = np.linspace(1, len(lrs), count).round().astype(int).tolist() if count else []
    rates |= {step: lrs[step - 1] for step in sampled}
    steps = [0, *(e.step for e in evaluations)]
    seconds = [0.0, *(e.seconds for e in evaluations)]
    for step, lr in sorted(rates.items()):
        timestamp = started + round(1000 * float(np.interp(step, steps, seconds)))
        points.append(MetricPoint("lr", lr, step, timestamp))
    return points


def _lr_curve_points(curve: LrCurve | None, started: int) -> list[MetricPoint]:
    """MLflow draws metrics over steps: both axes of the range test become metrics."""
    if curve is None:
        return []
    points = []
    for step, (lr, loss) in enumerate(curve.points):
        points.append(MetricPoint("lr_range.lr", lr, step, started))
        points.append(MetricPoint("lr_range.loss", loss, step, started))
    for step, (horizon, lr, loss) in enumerate(curve.grid):
        points.append(MetricPoint(f"lr_range.lr_of_{horizon}_steps", lr, step, started))
        points.append(MetricPoint(f"lr_range.loss_of_{horizon}_steps", loss, step, started))
    ends = {name: getattr(curve, name) for name in LR_CURVE_VALUES}
    points += [
        MetricPoint(f"lr_range.{name}", value, 0, started)
        for name, value in ends.items()
        if value is not None
    ]
    return points


def _summary_points(trial: Trial, ended: int) -> list[MetricPoint]:
    if trial.state == "running":
        return []
    points = [MetricPoint("wall_seconds", trial.wall_seconds, trial.steps, ended)]
    if trial.value is not None:
        points.append(MetricPoint("value", trial.value, trial.steps, ended))
    return points


def _name(text: str) -> str:
    """A name that MLflow accepts for a metric or parameter."""
    return re.sub(r"[^\w\-. :]", "_", text)[:MAX_KEY].strip(". ") or "_"


def _params(values: Mapping[str, Any]) -> dict[str, str]:
    return {_name(key): str(_as_stored(value))[:MAX_PARAM] for key, value in values.items()}


def _tags(values: Mapping[str, Any]) -> dict[str, str]:
    return {key: str(_as_stored(value))[:MAX_TAG] for key, value in values.items() if value != ""}


def _as_stored(value: Any) -> Any:
    """A value as it reads back from SQL (tuples are lists), so that both writers agree."""
    return storable_json(to_jsonable_python(value, inf_nan_mode="constants"))


def _milliseconds(moment: datetime) -> int:
    return round(1000 * moment.timestamp())
