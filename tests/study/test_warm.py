"""A study that starts from an older one: its best configurations first, its LR boxes, no more."""

import math
from pathlib import Path
from typing import Any

import pytest

from tests.store.samples import make_study
from tests.study.specs import ADAMW, CURVE, SGD, WHOLE, simulate, simulated, study_spec
from tests.study.test_bounds import optimum_at
from tuner import service
from tuner.errors import UsageError
from tuner.space import arm_space
from tuner.spec import StudySpec
from tuner.stages import History, chosen_point, warm_arms
from tuner.store.base import Store
from tuner.store.sql import open_store

value = optimum_at(1e-2)
OLD = study_spec(**WHOLE)


@pytest.fixture(scope="module")
def old() -> History:
    """A finished study with range tests."""
    trials = simulated(OLD, value)
    curves = {n: CURVE for n, t in trials.items() if t.stage == "lr-range"}
    return History(trials, curves)


def warmed(old: History, **changes: Any) -> StudySpec:
    spec = study_spec(**{**WHOLE, **changes})
    return spec.model_copy(update={"warm": warm_arms(spec, [(OLD, old)])})


def test_the_chosen_configuration_is_tried_first_and_no_range_test_is_run(old: History) -> None:
    spec = warmed(old)
    history = History(simulated(spec, value), {})
    assert not history.of("lr-range")
    for arm in spec.arms:
        first = history.of("screen", arm.name)[0].point
        assert first == pytest.approx(chosen_point(OLD, old, arm.name), abs=1e-6)
        box = next(d for d in arm_space(spec, arm, None) if d.name == "lr")
        assert box.low <= CURVE.low * (1 + 1e-9)
        assert box.high >= CURVE.high * (1 - 1e-9)
    assert {len(history.of("screen", a.name)) for a in spec.arms} == {8}


def test_choices_may_have_changed(old: History) -> None:
    """Another reference batch, other sizes, a searched beta: values move and are clipped."""
    arms = [{**ADAMW, "schedule": "cosine", "search": {"beta1": "auto"}}, {"optimizer": "lion"}]
    spec = warmed(old, arms=arms, search={"batch_size": 128, "weight_decay": [1e-3, 1e-2]})
    assert set(spec.warm) == {"adamw-cosine"}
    [arm, lion] = spec.arms
    trials = simulate(spec, value, last="screen")
    first = History(trials, {}).of("screen", arm.name)[0]
    then = old.of("decide", "adamw-warmup_cosine")[0]
    assert first.params["batch_size"] == 128
    moved = then.params["lr"] * math.sqrt(128 / then.params["batch_size"])
    assert first.params["lr"] == pytest.approx(moved)
    assert first.point["beta1"] == 0.9
    assert 1e-3 <= first.params["weight_decay"] <= 1e-2
    assert [t.arm for t in trials.values() if t.stage == "lr-range"] == [lion.name]


def test_a_given_box_wins_over_the_older_one(old: History) -> None:
    spec = warmed(old, arms=[{**SGD, "lr": [1e-6, 1e-5]}])
    trials = simulate(spec, value, last="screen").values()
    explored = {t.point["lr"] for t in trials if t.stage == "screen"}
    assert all(1e-6 <= lr <= 1e-5 for lr in explored)


def test_it_lies_in_the_row_so_that_a_resumed_study_is_the_same(old: History) -> None:
    spec = warmed(old)
    again = StudySpec.model_validate(spec.model_dump(mode="json"))
    assert again == spec
    plans = [
        [(t.number, t.point, t.stop_rules) for t in trials.values()]
        for trials in (simulated(spec, value), simulate(again, value))
    ]
    assert plans[0] == plans[1]


def save(store: Store, spec: StudySpec, history: History) -> None:
    """A study with all its rows."""
    name = spec.study.name
    store.create_study(make_study(name, spec=spec.model_dump(mode="json")))
    for number, trial in history.trials.items():
        store.save_outcome(name, trial, [], [], history.curves.get(number))


@pytest.mark.parametrize(
    ("name", "arms", "says"),
    [
        ("smal", [ADAMW], "there is no study 'smal'; did you mean small"),
        ("range", [ADAMW], "'range' is a range test"),
        ("small", [{"optimizer": "lion"}], "they have adamw, sgd"),
    ],
)
def test_what_cannot_be_started_from(
    tmp_path: Path, old: History, name: str, arms: list[dict[str, Any]], says: str
) -> None:
    store = open_store(f"sqlite:///{tmp_path}/t.db")
    save(store, OLD, old)
    store.create_study(make_study("range", spec={"study": {}}))
    spec = study_spec(**WHOLE, study={"warm_start": [name]}, arms=arms)
    with pytest.raises(UsageError, match=says):
        service.warm_started(spec, store)
    store.close()


def test_an_unfinished_study_gives_what_it_has() -> None:
    first = simulate(OLD, value, last="defaults").items()
    begun = {n: t for n, t in first if t.stage in ("defaults", "lr-range")}
    curves = {n: CURVE for n, t in begun.items() if t.stage == "lr-range"}
    warm = warm_arms(OLD, [(OLD, History(begun, curves))])
    assert all(known.lr == pytest.approx((CURVE.low, CURVE.high)) for known in warm.values())
