"""Records that hold what is hard to keep: NaN, infinities, time zones, odd text, deep JSON."""

from datetime import UTC, datetime, timedelta, timezone
from typing import Any

from tuner.records import Configuration, Evaluation, Failure, LrCurve, Study, Trial
from tuner.store.base import Lease

NOW = datetime(2026, 3, 1, 12, 30, 15, 123456, tzinfo=UTC)
NAN, INF = float("nan"), float("inf")
ODD_TEXT = "NaN 'quoted' \"double\" % {} \\ \n 日本 🙂 é"


def make_study(name: str = "digits", **changes: Any) -> Study:
    values: dict[str, Any] = {
        "name": name,
        "state": "running",
        "spec": {"arms": [{"name": "z"}, {"name": "a", "lr": [1e-5, 1e16]}], "none": None},
        "created_at": NOW,
        "updated_at": NOW,
    }
    return Study(**{**values, **changes})


def make_trial(number: int = 0, **changes: Any) -> Trial:
    values: dict[str, Any] = {
        "number": number,
        "arm": "sgd-cosine",
        "stage": "explore",
        "seed": 2**62 + number,
        "point": {"lr": 0.1, "batch_size": 64.0},
        "params": {"lr": 0.1, "betas": [0.9, 0.999], "nesterov": True, "clip_norm": None},
        "configuration": Configuration(optimizer="sgd", batch_size=64),
        "started_at": NOW,
    }
    return Trial(**{**values, **changes})


def make_evaluation(step: int = 10, **changes: Any) -> Evaluation:
    values: dict[str, Any] = {
        "step": step,
        "examples": step * 64,
        "seconds": step * 0.1,
        "lr": 0.1 / 3,
        "train_loss": 1.5 / step,
        "grad_norm": 2.5,
        "metrics": {"loss": 1 / step, "acc": 0.5},
    }
    return Evaluation(**{**values, **changes})


def make_finished_trial(number: int = 0, **changes: Any) -> Trial:
    failure = Failure(kind="user_error", message=ODD_TEXT, traceback="line 1\nline 2")
    values: dict[str, Any] = {
        "state": "failed",
        "value": NAN,
        "metrics": {"loss": NAN, "up": INF, "down": -INF, "tiny": 5e-324, "huge": 1.7e308},
        "steps": 40,
        "wall_seconds": 12.25,
        "attempts": 3,
        "micro_batch": 16,
        "device": "cuda:GPU-1 (NVIDIA H100)",
        "host": "trainer",
        "finished_at": (NOW + timedelta(seconds=9)).astimezone(timezone(timedelta(hours=-7))),
        "failure": failure,
        "provenance": {"git": {"commit": "abc", "dirty": True}, "packages": {"torch": "2.13"}},
        "info": {"nested": [[1, [2.5, NAN]], {"b": INF, "a": None}], "large": 1e300},
    }
    return make_trial(number, **{**values, **changes})


def make_lr_curve(**changes: Any) -> LrCurve:
    values: dict[str, Any] = {
        "points": [(1e-5, 2.3), (1e-4, 2.1), (0.1, NAN), (1.0, INF)],
        "suggested_lr": 3e-4,
        "low": 1e-5,
        "high": 1e-3,
        "diverges_at": 0.1,
        "flags": ["noise-dominated"],
        "reason": "the loss falls fastest here",
        "interval_low": 1e-4,
        "interval_high": 9e-4,
        "safe_low": 2e-4,
        "safe_high": None,
        "grid": [(12, 1e-4, 2.0), (75, 1e-3, INF)],
        "optima": [(12, 1e-3), (75, 5e-4)],
        "axis": "d_coef",
        "method": "forks",
        "run_steps": 300,
        "cost": 412.5,
    }
    return LrCurve(**{**values, **changes})


def make_lease(study: str = "digits", owner: str = "first", seconds: float = 30) -> Lease:
    expires_at = NOW + timedelta(seconds=seconds)
    return Lease(study=study, owner=owner, host="trainer", pid=17, expires_at=expires_at)
