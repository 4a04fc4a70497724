"""The check before a study: what it tells, and which mistakes of a task it finds."""

import math

import pytest

from tests.jobs import STUDIES, train


def test_a_check_says_what_a_run_will_cost() -> None:
    outcome = train(kind="check")
    assert outcome.state == "completed", outcome.failure
    info = outcome.info
    assert info["metrics"] == ["acc", "loss"]
    assert (info["n_train"], info["n_val"], info["parameters"]) == (203, 57, 178)
    assert 0 < info["seconds_per_step"] < 5
    assert 0 < info["seconds_per_eval"] < 5
    assert math.isfinite(info["train_loss"])
    assert outcome.evaluations == []


@pytest.mark.parametrize(
    ("task", "kind"),
    [("faulty:loss_is_a_vector", "user_error"), ("faulty:out_of_memory", "out_of_memory")],
)
def test_a_check_finds_what_would_fail(task: str, kind: str) -> None:
    outcome = train(task, kind="check")
    assert outcome.failure is not None
    assert outcome.failure.kind == kind


def test_numbers_over_the_whole_data_are_known_to_the_check() -> None:
    outcome = train("tiny:ranked", metric="auc", kind="check")
    assert outcome.state == "completed", outcome.failure
    assert outcome.info["metrics"] == ["acc", "auc", "loss"]


def test_the_check_tells_what_the_warnings_need() -> None:
    info = train(kind="check").info
    assert (info["traits"], info["validates_on_train"]) == ([], False)
    assert train("tiny:regression", kind="check").info["validates_on_train"]
    own = {"search_path": (str(STUDIES),), "kind": "check"}
    assert train("studies.charlm:build", **own).info["traits"] == ["attention"]


@pytest.mark.parametrize("task", ["faulty:one_model_for_all", "faulty:one_layer_for_all"])
def test_weights_that_runs_would_share_are_refused(task: str) -> None:
    failure = train(task, kind="check").failure
    assert failure is not None
    assert failure.kind == "usage_error"
    assert "model() returns weights that an earlier call returned" in failure.message


def test_what_is_not_trained_may_be_shared() -> None:
    assert train("faulty:one_frozen_layer_for_all", kind="check").state == "completed"


def test_a_model_that_sets_the_seed_is_noticed() -> None:
    assert train("faulty:sets_the_seed", kind="check").info["reseeds"]
    assert not train("tiny:noisy", kind="check").info["reseeds"]
