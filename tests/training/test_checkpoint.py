"""An interrupted run goes on as if nothing had happened, and a bad file never stops it."""

import resource
from pathlib import Path
from typing import Any

import pytest
import torch

import optimizers
from tests.jobs import configuration, go_on, job, numbers
from tuner import training
from tuner.records import Evaluation, Job
from tuner.training import run


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "checkpoints" / "trial.pt"


def saving(path: Path, task: str = "tiny:noisy", **changes: Any) -> Job:
    return job(task, checkpoint=str(path), checkpoint_seconds=0.0, **changes)


def interrupt(the_job: Job, step: int) -> None:
    """Stop abruptly after a step, as a killed process does: nothing is cleaned up."""

    def report(done: int, total: int, evaluation: Evaluation | None) -> bool:
        if done >= step:
            raise KeyboardInterrupt
        return True

    with pytest.raises(KeyboardInterrupt):
        run(the_job, report)


MOMENTS = [("tiny:noisy", step) for step in (2, 10, 40)] + [("tiny:sentences", 23)]
RUNS = [
    *(({}, task, step) for task, step in MOMENTS),
    *(({"optimizer": name}, "tiny:noisy", 23) for name in optimizers.names()),
    *(
        ({"schedule": name, "optimizer": "sgd"}, "tiny:noisy", 23)
        for name in optimizers.schedules.names()
    ),
]


@pytest.mark.parametrize(
    ("settings", "task", "step"),
    RUNS,
    ids=lambda each: "-".join(each.values()) if isinstance(each, dict) else None,
)
def test_resuming_is_bit_equal(
    path: Path, settings: dict[str, str], task: str, step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "PROGRESS_SECONDS", 0.0)
    arguments = {"lr": 1e-2}
    changes = {"configuration": configuration(optimizer_args=arguments, **settings)}
    changes["micro_batch"] = 6
    whole = run(job(task, **changes), go_on)
    assert whole.state == "completed", whole.failure
    resuming = saving(path, task, **changes)
    interrupt(resuming, step)
    assert path.exists()
    resumed = run(resuming.model_copy(update={"checkpoint_seconds": 1e9}), go_on)
    assert resumed.info["resumed_at"] == step - 1
    assert numbers(resumed) == numbers(whole)
    assert not path.exists()


def test_a_cancelled_run_keeps_where_it_was(path: Path) -> None:
    whole = run(job("tiny:noisy"), go_on)
    cancelling = job("tiny:noisy", checkpoint=str(path), checkpoint_seconds=1e9)
    assert run(cancelling, lambda step, *_: step < 20).state == "cancelled"
    resumed = run(cancelling, go_on)
    assert resumed.info["resumed_at"] == 20
    assert numbers(resumed) == numbers(whole)


@pytest.mark.parametrize("task", ["faulty:nan_loss", "faulty:loss_raises", "tiny:build"])
def test_the_end_of_a_run_deletes_its_checkpoint(path: Path, task: str) -> None:
    run(saving(path, task), go_on)
    assert path.parent.exists()
    assert list(path.parent.iterdir()) == []


def damage(path: Path) -> None:
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def older_format(path: Path) -> None:
    torch.save({"format": 0}, path)


def not_a_checkpoint(path: Path) -> None:
    torch.save([1, 2, 3], path)


def needs_unpickling(path: Path) -> None:
    torch.save({"format": 1, "job": Path("/")}, path)


BAD_FILES = {
    damage: "unreadable",
    empty: "unreadable",
    needs_unpickling: "unreadable",
    older_format: "not written by this version",
    not_a_checkpoint: "not written by this version",
}


@pytest.mark.parametrize("spoil", BAD_FILES, ids=lambda spoil: spoil.__name__)
def test_a_bad_file_is_ignored_with_a_note(path: Path, spoil: Any) -> None:
    the_job = saving(path)
    interrupt(the_job, 20)
    spoil(path)
    outcome = run(the_job, go_on)
    assert BAD_FILES[spoil] in outcome.info["notes"][0]
    assert "resumed_at" not in outcome.info
    assert numbers(outcome) == numbers(run(job("tiny:noisy"), go_on))


def test_the_checkpoint_of_another_run_is_ignored(path: Path) -> None:
    interrupt(saving(path), 20)
    outcome = run(saving(path, seed=2), go_on)
    assert outcome.info["notes"] == ["checkpoint ignored: it belongs to another run"]
    assert numbers(outcome) == numbers(run(job("tiny:noisy", seed=2), go_on))


def test_another_attempt_of_the_same_run_resumes(path: Path) -> None:
    interrupt(saving(path), 20)
    again = saving(path).model_copy(update={"id": "second attempt", "checkpoint_seconds": 5.0})
    assert run(again, go_on).info["resumed_at"] > 0


def test_a_model_that_changed_starts_again(path: Path) -> None:
    the_job = saving(path)
    interrupt(the_job, 20)
    state = torch.load(path, weights_only=True)
    del state["model"]["0.weight"]
    torch.save(state, path)
    outcome = run(the_job, go_on)
    assert "does not fit the model" in outcome.info["notes"][0]
    assert numbers(outcome) == numbers(run(job("tiny:noisy"), go_on))


def test_a_full_disk_does_not_stop_the_run(path: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, before[1]))
    try:
        outcome = run(saving(path), go_on)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert outcome.state == "completed"
    assert len(outcome.info["notes"]) == 1
    assert outcome.info["notes"][0].startswith("no checkpoint could be saved")
    assert list(path.parent.iterdir()) == []


def test_a_folder_that_cannot_be_made_does_not_stop_the_run(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    outcome = run(saving(tmp_path / "file" / "trial.pt"), go_on)
    assert outcome.state == "completed"
    assert "no checkpoint could be saved" in outcome.info["notes"][0]
