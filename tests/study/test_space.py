"""What joins the search by budget, and how learning rate, batch size and decay move together."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

import optimizers
from optimizers import schedules
from tests.study.specs import CURVE, SGD, study_spec
from tuner.space import (
    Dimension,
    arm_space,
    configuration,
    decay_is_coupled,
    default_point,
    point_of,
    searched,
    used_params,
)

FREE = {"optimizer": "adamw", "schedule": "warmup_cosine", "clip_norm": 1.0}


def joined(trials: int, arm: dict = FREE, **search: object) -> list[str]:
    spec = study_spec(budget={"trials_per_arm": trials}, arms=[arm], search=search)
    return list(searched(spec, spec.arms[0]))


def test_short_runs_do_not_tell_of_weight_decay() -> None:
    """It shrinks weights by a share a step: how much over a run depends on the run's length."""
    spec = study_spec(budget={"trials_per_arm": 32}, arms=[FREE])
    axes = arm_space(spec, spec.arms[0], CURVE)
    assert [axis.name for axis in axes if axis.gradual] == ["weight_decay"]


@pytest.mark.parametrize(
    ("trials", "names"),
    [
        (9, []),
        (16, ["beta1"]),
        (24, ["beta1"]),
        (32, ["beta1", "eps", "warmup", "floor", "clip_norm"]),
    ],
)
def test_the_budget_says_what_joins(trials: int, names: list[str]) -> None:
    assert joined(trials) == names


@pytest.mark.parametrize(("diverges_at", "high"), [(None, 1e-2), (1e-3, 1e-2), (3.0, 2.0)], ids=str)
def test_a_refused_range_test_still_says_how_high_rates_go(
    diverges_at: float | None, high: float
) -> None:
    """Ranges of rows are made for long runs; Adam learns nothing in ten steps at 1e-4 to 1e-2."""
    spec = study_spec(arms=[{"optimizer": "adam"}])
    nothing = {"suggested_lr": None, "low": None, "high": None, "diverges_at": diverges_at}
    lr = arm_space(spec, spec.arms[0], CURVE.model_copy(update=nothing))[0]
    assert (lr.low, lr.high) == (1e-4, high)


def test_every_axis_has_four_trials() -> None:
    for trials in (10, 12, 15, 20, 27, 64):
        spec = study_spec(budget={"trials_per_arm": trials}, arms=[FREE])
        axes = [d for d in arm_space(spec, spec.arms[0], None) if d.start < d.end]
        assert len(axes) <= max(3, trials // 4)


def test_what_the_file_fixes_stays_fixed() -> None:
    fixed = {**FREE, "optimizer_args": {"betas": [0.8, 0.9], "eps": 1e-6}}
    assert joined(64, {**fixed, "schedule_args": {"warmup": 0.1}}) == ["floor", "clip_norm"]
    assert joined(64, SGD) == ["warmup", "floor"]  # its momentum is given


def test_what_is_off_by_default_stays_off() -> None:
    assert "momentum" not in joined(64, {"optimizer": "sgd"})
    assert "momentum" not in joined(64, {"optimizer": "rmsprop"})


def test_joining_can_be_turned_off_and_on() -> None:
    assert joined(64, join="none") == []
    assert joined(64, {**FREE, "join": "none"}) == []
    assert joined(5, join="all")[0] == "beta1"
    named = {**FREE, "join": "none", "search": {"beta2": [0.9, 0.999], "clip_norm": "auto"}}
    assert joined(5, named) == ["beta2", "clip_norm"]


def test_a_wrappers_number_joins_and_reaches_the_wrapper() -> None:
    arm = {"optimizer": "sgd", "wrapper": "sam"}
    spec = study_spec(budget={"trials_per_arm": 16}, arms=[arm])
    point = {**default_point(spec, spec.arms[0]), "rho": 0.1}
    made = configuration(spec.arms[0], used_params(spec, spec.arms[0], point))
    assert made.wrapper_args == {"rho": 0.1}
    assert "rho" not in made.optimizer_args


@pytest.mark.parametrize("name", optimizers.names())
@pytest.mark.parametrize("schedule", ["warmup_cosine", "one_cycle", "plateau"])
def test_every_configuration_of_the_box_is_valid(name: str, schedule: str) -> None:
    """Corners and defaults of everything that can join, for each optimizer."""
    arm = {"optimizer": name, "schedule": schedule, "join": "all", "clip_norm": 1.0}
    spec = study_spec(budget={"trials_per_arm": 200}, arms=[arm])
    section, rule = spec.arms[0], optimizers.get_rule(name)
    space = arm_space(spec, section, None)
    corners = [{d.name: d.at(f) for d in space} for f in (0.0, 0.5, 0.999)]
    for point in [default_point(spec, section), *corners]:
        made = configuration(section, used_params(spec, section, point))
        assert made.optimizer_args.pop("clip_norm") > 0
        rule.validate(rule.arguments | rule.pack(made.optimizer_args))
        schedules.create(made.schedule, **made.schedule_args)


def test_decoupled_decay_is_searched_as_a_product() -> None:
    """At ten times the learning rate a tenth of the decay: the weights shrink as fast."""
    spec = study_spec(arms=[FREE])
    arm = spec.arms[0]
    assert decay_is_coupled(spec, arm)
    base = default_point(spec, arm)
    one = used_params(spec, arm, base)
    ten = used_params(spec, arm, {**base, "lr": base["lr"] * 10})
    assert one["weight_decay"] == pytest.approx(0.01)
    assert ten["lr"] * ten["weight_decay"] == pytest.approx(one["lr"] * one["weight_decay"])


@pytest.mark.parametrize(
    ("arm", "decay"),
    [
        (FREE, [1e-3, 1e-1]),  # a range of the user's is meant as it is written
        (FREE, 0.1),
        ({"optimizer": "adam"}, "auto"),  # L2
        ({**FREE, "optimizer_args": {"weight_decay_mode": "l2"}}, "auto"),
    ],
)
def test_other_decay_is_searched_as_it_is(arm: dict, decay: object) -> None:
    spec = study_spec(arms=[arm], search={"weight_decay": decay})
    assert not decay_is_coupled(spec, spec.arms[0])
    point = {**default_point(spec, spec.arms[0]), "lr": 0.05, "weight_decay": 0.1}
    assert used_params(spec, spec.arms[0], point)["weight_decay"] == 0.1


@given(
    lr=st.floats(1e-6, 1.0),
    decay=st.floats(0, 1),
    size=st.sampled_from([8, 16, 32]),
    name=st.sampled_from(["adamw", "sgd", "lion", "lars", "muon"]),
)
def test_a_point_comes_back_from_what_a_run_used(
    lr: float, decay: float, size: int, name: str
) -> None:
    spec = study_spec(budget={"trials_per_arm": 64}, arms=[{"optimizer": name}])
    arm = spec.arms[0]
    point = {**default_point(spec, arm), "lr": lr, "batch_size": size, "weight_decay": decay}
    assert point_of(spec, arm, used_params(spec, arm, point)) == pytest.approx(point)


def test_searched_momentum_moves_the_weights_as_fast() -> None:
    """SGD's buffer sums up steps: the range test ran without momentum, 0.95 needs a 20th of it."""
    arm = {"optimizer": "sgd", "search": {"momentum": [0.5, 0.99]}}
    spec = study_spec(arms=[arm])
    base = default_point(spec, spec.arms[0]) | {"batch_size": 32, "lr": 0.1}
    used = [used_params(spec, spec.arms[0], {**base, "momentum": m})["lr"] for m in (0, 0.5, 0.95)]
    assert used == pytest.approx([0.1, 0.05, 0.005])
    point = {**base, "momentum": 0.95}
    back = point_of(spec, spec.arms[0], used_params(spec, spec.arms[0], point))
    assert back == pytest.approx(point)
    given = study_spec(arms=[{**arm, "lr": [1e-3, 1.0]}])  # a range is what the file says it is
    assert used_params(given, given.arms[0], point)["lr"] == pytest.approx(0.2)


def test_decays_that_do_nothing_are_one_place_of_their_axis() -> None:
    """A run of 200 steps at 0.01 on average shrinks weights by 1 % with a decay of 0.01."""
    curve = CURVE.model_copy(update={"suggested_lr": 0.01, "run_steps": 200})
    spec = study_spec(arms=[FREE], search={"weight_decay": [1e-6, 1.0]})
    axis = arm_space(spec, spec.arms[0], curve)[2]
    assert axis.idle == pytest.approx(0.01)
    assert axis.fraction(1e-6) == 0
    assert axis.fraction(1e-3) < 0.03 < 0.45 < axis.fraction(0.1) < axis.fraction(1.0) == 1
    assert arm_space(spec, spec.arms[0], None)[2].idle == 0  # nobody knows the learning rate
    l2 = study_spec(arms=[SGD], search={"weight_decay": [1e-6, 1.0]})
    assert arm_space(l2, l2.arms[0], curve)[2].idle == pytest.approx(0.001)  # momentum 0.9
    adam = study_spec(arms=[{"optimizer": "adam"}], search={"weight_decay": [1e-6, 1.0]})
    assert arm_space(adam, adam.arms[0], curve)[2].idle == 0  # the gradient's size divides it


@given(fraction=st.floats(0, 0.999), idle=st.sampled_from([0.0, 1e-3, 10.0]))
def test_a_fraction_is_where_its_value_lies(fraction: float, idle: float) -> None:
    axis = Dimension("weight_decay", 1e-5, 1.0, log=True, idle=idle)
    assert axis.fraction(axis.at(fraction)) == pytest.approx(fraction, abs=1e-6)
