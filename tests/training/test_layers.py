"""Trials tell of their layers, at no cost to what they compute."""

from pathlib import Path

import pytest

from optimizers.monitor import LayerStats, Report
from tests.jobs import configuration, go_on, job, numbers, train
from tuner import training
from tuner.cli.trial import layers_line
from tuner.layers import LOOKS, MOST_LAYERS, summary
from tuner.training import run


def test_a_trial_tells_of_its_layers_a_few_times() -> None:
    looks = train(max_steps=40).info["layers"]
    assert [look["step"] for look in looks] == [1, 11, 21, 31]
    for look in looks:
        assert list(look["layers"]) == ["0", "2"]
        for layer in look["layers"].values():
            assert layer["grad_norm"] > 0
            assert 0 < layer["update_ratio"] < 1
            assert layer["verdict"] == "ok"


@pytest.mark.parametrize("steps", [1, 3, 7, 1000])
def test_there_are_never_more_looks_than_that(steps: int) -> None:
    assert 1 <= len(train(max_steps=steps).info["layers"]) <= LOOKS


@pytest.mark.parametrize("optimizer", ["adamw", "sam"])
def test_the_numbers_of_a_trial_do_not_move(
    optimizer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = {"configuration": configuration(optimizer=optimizer)}
    watched = train("tiny:noisy", **changes)
    assert watched.state == "completed", watched.failure
    monkeypatch.setattr(training, "watch", lambda *_: None)
    assert numbers(train("tiny:noisy", **changes)) == numbers(watched)
    assert watched.info["layers"]


def test_a_resumed_trial_tells_the_same(tmp_path: Path) -> None:
    whole = train("tiny:noisy")
    resuming = job("tiny:noisy", checkpoint=str(tmp_path / "run.pt"), checkpoint_seconds=1e9)
    assert run(resuming, lambda step, *_: step < 20).state == "cancelled"
    assert run(resuming, go_on).info["layers"] == whole.info["layers"]


def test_a_large_model_is_told_in_part() -> None:
    healthy = LayerStats(grad_norm=1.0, weight_norm=1.0, update_norm=1 / 3)
    broken = LayerStats(grad_norm=float("inf"), weight_norm=0.0, update_norm=0.0)
    names = [f"blocks.{index}" for index in range(500)]
    layers = dict.fromkeys(names, healthy) | {"blocks.77": broken}
    verdicts = dict.fromkeys(names, "ok") | {"blocks.77": "exploding"}
    told = summary(Report(7, layers, verdicts))["layers"]
    assert 10 < len(told) <= MOST_LAYERS
    assert told["blocks.77"] == {"grad_norm": None, "update_ratio": None, "verdict": "exploding"}
    assert told["blocks.0"] == {"grad_norm": 1.0, "update_ratio": 0.3333, "verdict": "ok"}
    assert sorted(told, key=names.index) == list(told)


def test_people_read_which_layers_are_not_well() -> None:
    looks = train().info["layers"]
    assert layers_line(looks) == "all well at step 31"
    looks[-1]["layers"]["2"]["verdict"] = "vanishing"
    assert layers_line(looks) == "2 vanishing at step 31"
    assert layers_line([]) == ""
