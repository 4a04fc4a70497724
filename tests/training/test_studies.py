"""The tasks that ship with the project train on their real data."""

import pytest

from tests.jobs import STUDIES, configuration, go_on, job
from tuner.records import Outcome
from tuner.training import run

# Task -> metric, direction, steps at batch 32, and a value that is reached only by learning.
TASKS = {
    "studies.digits:build": ("acc", "maximize", 300, 0.93),
    "studies.tabular:diabetes": ("rmse", "minimize", 100, 0.8),
    "studies.tabular:breast_cancer": ("acc", "maximize", 100, 0.93),
    "studies.mnist:build": ("acc", "maximize", 100, 0.8),
    "studies.charlm:build": ("loss", "minimize", 25, 3.3),
}


def trained(task: str, kind: str = "train") -> Outcome:
    metric, direction, steps, _ = TASKS[task]
    return run(
        job(
            task,
            kind=kind,
            search_path=(str(STUDIES),),
            metric=metric,
            direction=direction,
            max_steps=steps,
            evaluations=1,
            configuration=configuration(batch_size=32, optimizer_args={"lr": 3e-3}),
        ),
        go_on,
    )


@pytest.mark.slow
@pytest.mark.parametrize("task", TASKS)
def test_a_study_learns(task: str) -> None:
    _, direction, _, goal = TASKS[task]
    outcome = trained(task)
    assert outcome.state == "completed", outcome.failure
    assert outcome.value is not None
    assert (outcome.value > goal) == (direction == "maximize")


@pytest.mark.parametrize("task", TASKS)
def test_a_study_passes_its_check(task: str) -> None:
    outcome = trained(task, kind="check")
    assert outcome.state == "completed", outcome.failure
    assert TASKS[task][0] in outcome.info["metrics"]
