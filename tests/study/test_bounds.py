"""A best point on a bound moves it once and gives every arm the same extra trials."""

import math
import random

import pytest

from tests.study.specs import ADAMW, SGD, simulate, study_spec
from tuner.answer import arm_scores
from tuner.records import Trial
from tuner.space import Dimension
from tuner.stages import History, final_box, full_trials, unresolved_bounds, widenings
from tuner.stages.bounds import on_bounds

BUDGET = {"trials_per_arm": 12, "extend_trials": 0.25}
ARMS = [{**ADAMW, "lr": [1e-4, 1e-2]}, {**SGD, "lr": [1e-4, 1.0]}]


def optimum_at(lr: float):
    """Both arms are best at a learning rate of 0.01, but AdamW at `lr`."""

    def value(trial: Trial) -> float | None:
        best = lr if trial.arm.startswith("adamw") else 1e-2
        noise = random.Random(f"{trial.seed}{trial.arm}").gauss(0, 1e-3)
        return -((math.log10(trial.point["lr"]) - math.log10(best)) ** 2) + noise

    return value


def studied(lr: float, **budget: float) -> tuple:
    spec = study_spec(budget={**BUDGET, **budget}, arms=ARMS)
    return spec, History(simulate(spec, optimum_at(lr)), {})


def test_an_optimum_outside_is_found_and_every_arm_gets_as_much() -> None:
    spec, history = studied(3e-2)
    hits = {hit.axis: hit for hit in widenings(spec, history, "adamw-warmup_cosine")}
    assert (hits["lr"].side, hits["lr"].new) == ("high", (1e-4, pytest.approx(0.1)))
    assert hits.keys() <= {"lr", "weight_decay"}  # the decay does nothing here: it ends anywhere
    assert widenings(spec, history, "sgd-cosine") == []
    counts = [len(history.of("explore", arm.name)) for arm in spec.arms]
    assert counts == [15, 15]
    seeds = [[t.seed for t in history.of("explore", arm.name)] for arm in spec.arms]
    assert seeds[0] == seeds[1]
    chosen = history.of("decide", "adamw-warmup_cosine")[0].point["lr"]
    assert 1e-2 < chosen < 1e-1
    assert unresolved_bounds(spec, history, "adamw-warmup_cosine") == []
    axis = final_box(spec, history, "adamw-warmup_cosine")[0]
    assert (axis.low, axis.high) == (1e-4, pytest.approx(0.1))


def test_a_bound_moves_once_only() -> None:
    """An optimum far outside leaves the arm under-explored."""
    spec, history = studied(1e3, extend_trials=1)
    hits = widenings(spec, history, "adamw-warmup_cosine")
    assert [hit.new for hit in hits if hit.axis == "lr"] == [(1e-4, pytest.approx(0.1))]
    tried = [t.point["lr"] for t in history.of("explore", "adamw-warmup_cosine")]
    assert max(tried) <= 0.1 * (1 + 1e-9)
    assert arm_scores(spec, history, "adamw-warmup_cosine").flags == ["at-bound-lr"]
    assert arm_scores(spec, history, "sgd-cosine").flags == []


def test_bounds_stay_when_told_so() -> None:
    spec, history = studied(3e-2, extend_trials=0)
    assert widenings(spec, history, "adamw-warmup_cosine") == []
    assert {len(history.of("explore", a.name)) for a in spec.arms} == {12}
    assert unresolved_bounds(spec, history, "adamw-warmup_cosine") == ["at-bound-lr"]


def test_an_optimum_inside_moves_nothing() -> None:
    spec, history = studied(1e-3)
    assert not any(widenings(spec, history, arm.name) for arm in spec.arms)
    assert len(history.trials) == sum(
        len(history.of(s)) for s in ("calibrate", "defaults", "explore", "confirm", "decide")
    )
    assert {full_trials(spec, a.name) for a in spec.arms} == {12}


LOG = Dimension("lr", 1e-4, 1.0, log=True)


@pytest.mark.parametrize(
    ("best", "sides"),
    [
        ([0.7], ["high"]),
        ([1.2e-4], ["low"]),
        ([1e-2, 0.7, 0.8], ["high"]),  # two of the best three
        ([1e-2, 0.7, 1e-3, 0.8], []),  # one of the best three
        ([0.3], []),
        ([], []),
    ],
)
def test_what_lies_on_a_bound(best: list[float], sides: list[str]) -> None:
    assert [hit.side for hit in on_bounds((LOG,), [{"lr": lr} for lr in best])] == sides


def test_only_axes_that_can_matter_move() -> None:
    decay = Dimension("weight_decay", 1e-6, 1e-1, log=True)
    assert [h.side for h in on_bounds((decay,), [{"weight_decay": 1e-1}])] == ["high"]
    assert on_bounds((decay,), [{"weight_decay": 1e-6}]) == []
    beta = Dimension("beta1", 0.5, 0.98, log=True, complement=True)
    fixed = Dimension("lr", 0.1, 0.1, log=True)
    linear = Dimension("weight_decay", 0.0, 0.1)
    for axis, value in ((beta, 0.98), (fixed, 0.1), (linear, 0.1)):
        assert on_bounds((axis,), [{axis.name: value}]) == []
