"""The range test of a job finds good rates on real problems, for every rule."""

from typing import Any

import pytest

import optimizers
from tests.jobs import configuration, job
from tuner.lr_finder import lr_range

RUN_STEPS = 150


def digits(optimizer: str, **arguments: Any) -> dict[str, Any]:
    chosen = configuration(
        optimizer=optimizer,
        optimizer_args={"lr": 1.0, **arguments},
        schedule="warmup_cosine",
        batch_size=32,
    )
    return {"configuration": chosen, "search_path": (), "max_steps": RUN_STEPS}


# Half a decade around the rates with the lowest validation loss of whole runs (`benchmarks`).
GOOD_RATES = {
    "sgd": (digits("sgd"), 0.1, 1.0),
    "momentum": (digits("sgd", momentum=0.9), 0.05, 0.5),
    "adamw": (digits("adamw"), 8e-3, 8e-2),
    "lion": (digits("lion"), 2e-3, 3e-2),
}


@pytest.mark.parametrize("name", GOOD_RATES)
def test_suggestions_on_digits_are_good_rates(name: str) -> None:
    changes, low, high = GOOD_RATES[name]
    curve = lr_range(job("studies.digits:build", **changes))
    assert curve.suggested_lr is not None, curve.reason
    assert low < curve.suggested_lr < high
    assert curve.interval_low is not None
    assert curve.interval_high is not None
    assert curve.interval_low < curve.suggested_lr < curve.interval_high
    assert curve.diverges_at is not None
    assert curve.suggested_lr < curve.diverges_at / 1.5
    assert (curve.method, curve.axis, curve.run_steps) == ("forks", "lr", RUN_STEPS)
    assert curve.cost <= 1.6 * RUN_STEPS


def test_the_same_job_gives_the_same_curve() -> None:
    assert lr_range(job(max_steps=60)) == lr_range(job(max_steps=60))


def test_validation_examples_may_judge() -> None:
    train, val = (lr_range(job(max_steps=60, range_on=on)) for on in ("train", "val"))
    assert val.suggested_lr is not None, val.reason
    assert train.points == val.points
    assert [loss for *_, loss in train.grid] != [loss for *_, loss in val.grid]


def test_accumulation_changes_rounding_only() -> None:
    whole, pieces = (lr_range(job(max_steps=60, micro_batch=size)) for size in (None, 5))
    assert pieces.suggested_lr == pytest.approx(whole.suggested_lr, rel=0.05)


def test_a_negative_loss_is_no_obstacle() -> None:
    curve = lr_range(job("tiny:regression", max_steps=100))
    assert curve.suggested_lr is not None, curve.reason
    assert all(loss < -4 for _, loss in curve.points[:10])


def test_a_loss_that_is_never_finite_is_reported() -> None:
    curve = lr_range(job("faulty:nan_loss", max_steps=60))
    assert curve.suggested_lr is None
    assert curve.flags == ["diverges-everywhere"]


def test_progress_counts_to_the_budget() -> None:
    seen: list[tuple[int, int]] = []
    lr_range(job(max_steps=60), lambda step, steps: seen.append((step, steps)))
    assert all(step <= steps == 89 for step, steps in seen)
    assert len(seen) > 60


def test_a_quick_test_says_what_it_is_worth() -> None:
    curve = lr_range(job(max_steps=60, range_method="quick", range_steps=90))
    assert curve.suggested_lr is not None
    assert (curve.method, curve.interval_low, curve.grid) == ("quick", None, [])
    assert "single ramp" in curve.reason
    assert curve.cost < 150


@pytest.mark.parametrize("optimizer", sorted(optimizers.names()))
def test_every_rule_gets_an_answer(optimizer: str) -> None:
    chosen = configuration(optimizer=optimizer, optimizer_args={})
    curve = lr_range(job(configuration=chosen, max_steps=120))
    assert curve.suggested_lr is not None, curve.reason
    assert curve.axis == ("d_coef" if optimizer == "prodigy" else "lr")


@pytest.mark.parametrize("wrapper", ["sam", "asam", "lookahead"])
def test_every_wrapper_gets_an_answer(wrapper: str) -> None:
    chosen = configuration(optimizer="sgd", wrapper=wrapper, optimizer_args={"momentum": 0.9})
    curve = lr_range(job(configuration=chosen, max_steps=100))
    assert curve.suggested_lr is not None, curve.reason
