"""Jobs for the tests: short, on the tasks of `tests/tasks`."""

from pathlib import Path
from typing import Any

from tuner.records import Configuration, Evaluation, Job, Outcome
from tuner.training import run

TASKS = Path(__file__).parent / "tasks"
STUDIES = Path(__file__).parent.parent


def configuration(**changes: Any) -> Configuration:
    values = {
        "optimizer": "adamw",
        "optimizer_args": {"lr": 1e-2, "clip_norm": 1.0},
        "schedule": "warmup_cosine",
        "batch_size": 16,
    }
    return Configuration(**{**values, **changes})


def job(task: str = "tiny:build", **changes: Any) -> Job:
    values = {
        "id": "job",
        "kind": "train",
        "task": task,
        "search_path": (str(TASKS),),
        "configuration": configuration(),
        "seed": 1,
        "metric": "loss",
        "max_steps": 40,
        "evaluations": 4,
    }
    return Job(**{**values, **changes})


def go_on(step: int, total: int, evaluation: Evaluation | None) -> bool:
    return True


def train(task: str = "tiny:build", **changes: Any) -> Outcome:
    """Run a job in this process."""
    return run(job(task, **changes), go_on)


def numbers(outcome: Outcome) -> dict[str, Any]:
    """What must be bit-equal between two runs of the same job."""
    return {
        "state": outcome.state,
        "value": outcome.value,
        "lrs": outcome.lrs,
        "evaluations": [each.model_dump(exclude={"seconds"}) for each in outcome.evaluations],
    }
