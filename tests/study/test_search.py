"""The sampler: pure, inside its box, and it learns from divergence."""

import math
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.study.specs import ADAMW, CURVE, SGD, study_spec
from tuner.observed import Observation, finite_values
from tuner.search import _snapped, estimates, promising, propose
from tuner.space import (
    Dimension,
    arm_space,
    configuration,
    scale_lr,
    suggested_point,
    used_params,
)

SPACE = (
    Dimension("lr", 1e-5, 10.0, log=True),
    Dimension("batch_size", 8, 64, values=(8, 16, 32, 64)),
    Dimension("weight_decay", 0.0, 0.1),
)


def search(objective, trials: int, seed: int, startup: int = 10) -> list[Observation]:
    """Run a search of `trials` points."""
    seen: list[Observation] = []
    for index in range(trials):
        point = propose(SPACE, seen, [], "minimize", index, startup, seed)
        seen.append(Observation(point, objective(point)))
    return seen


def cliff(point: dict[str, float]) -> float | None:
    """A loss whose optimum lies 0.3 decades under the learning rate that diverges."""
    if point["lr"] > 1e-1:
        return None
    return (math.log10(point["lr"]) + 1.3) ** 2 + point["weight_decay"]


@cache
def at_the_cliff(seed: int) -> list[Observation]:
    """Fifty points; the first of them are those of a shorter search."""
    return search(cliff, 50, seed)


def test_divergence_is_learned() -> None:
    """0.92 of the trials diverge when divergence is reported as NaN."""
    shares = []
    for seed in range(6):
        later = at_the_cliff(seed)[10:]
        shares.append(sum(o.value is None for o in later) / len(later))
    assert sum(shares) / len(shares) <= 0.35


def test_the_search_concentrates_around_the_optimum() -> None:
    """A sampler that cannot learn puts a third of its points within a decade of the optimum."""
    near = [
        abs(math.log10(o.point["lr"]) + 1.3) < 1
        for seed in range(4)
        for o in at_the_cliff(seed)[10:40]
    ]
    assert sum(near) / len(near) > 0.6


@given(seed=st.integers(0, 2**31), index=st.integers(0, 30), pending=st.integers(0, 3))
@settings(max_examples=30, deadline=None)
def test_a_proposal_is_pure_and_inside(seed: int, index: int, pending: int) -> None:
    seen = [
        Observation(propose(SPACE, [], [], "minimize", i, 99, 0), float(i)) for i in range(index)
    ]
    running = [o.point for o in seen[len(seen) - pending :]]
    first, second = (
        propose(SPACE, seen, running, "maximize", index, startup=4, seed=seed) for _ in range(2)
    )
    assert first == second
    assert all(d.contains(first[d.name]) for d in SPACE)


def test_startup_covers_the_box() -> None:
    points = [propose(SPACE, [], [], "minimize", i, 16, seed=3) for i in range(16)]
    quarters = {int((math.log10(p["lr"]) + 5) / 1.5) for p in points}
    assert quarters == {0, 1, 2, 3}
    assert {p["batch_size"] for p in points} == {8, 16, 32, 64}


def test_pending_points_are_avoided() -> None:
    seen = at_the_cliff(0)[:20]
    alone = propose(SPACE, seen, [], "minimize", 20, 10, seed=5)
    crowded = propose(SPACE, seen, [alone] * 4, "minimize", 20, 10, seed=5)
    assert alone != crowded


def test_a_fixed_axis_stays_fixed() -> None:
    space = (Dimension("lr", 0.1, 0.1), Dimension("batch_size", 8, 8, values=(8,)))
    assert propose(space, [], [], "minimize", 0, 1, 0) == {"lr": 0.1, "batch_size": 8}


@given(
    values=st.lists(st.one_of(st.none(), st.floats(-1e6, 1e6)), min_size=1),
    direction=st.sampled_from(["minimize", "maximize"]),
)
def test_a_missing_value_is_finite_and_worst(values: list[float | None], direction: str) -> None:
    told = finite_values([Observation({}, v) for v in values], direction)
    known = [v for v in values if v is not None]
    sign = 1 if direction == "minimize" else -1
    for value, said in zip(values, told, strict=True):
        if value is not None:
            assert said == value
        elif known:
            assert math.isfinite(said)
            assert sign * said > max(sign * v for v in known)


def test_pruned_trials_are_told_as_pruned() -> None:
    seen = [
        Observation(propose(SPACE, [], [], "minimize", i, 99, 0), float(i), pruned_at=5 + i % 2)
        for i in range(12)
    ]
    assert propose(SPACE, seen, [], "minimize", 12, 4, 0)["lr"] > 0


@pytest.mark.parametrize(("scaling", "factor"), [("linear", 4.0), ("sqrt", 2.0), ("none", 1.0)])
def test_the_learning_rate_follows_the_batch_size(scaling: str, factor: float) -> None:
    assert scale_lr(0.1, 128, 32, scaling) == pytest.approx(0.1 * factor)


def test_the_box_comes_from_the_range_test() -> None:
    spec = study_spec()
    lr, batch, _ = arm_space(spec, spec.arms[0], CURVE)
    assert (lr.low, lr.high, batch.values) == (CURVE.low, CURVE.high, (8, 16, 32))
    assert suggested_point(spec, spec.arms[0], CURVE)["lr"] == CURVE.suggested_lr


def test_sgd_moves_linearly_and_adamw_by_the_root() -> None:
    spec = study_spec(arms=[ADAMW, SGD])
    point = {"lr": 0.01, "batch_size": 8, "weight_decay": 0.0}
    assert [spec.box(arm).reference for arm in spec.arms] == [32, 32]
    adamw, sgd = (used_params(spec, arm, point)["lr"] for arm in spec.arms)
    assert (adamw, sgd) == (pytest.approx(0.01 / 2), pytest.approx(0.01 / 4))


def test_numbers_of_optimizer_and_schedule_can_be_searched() -> None:
    """Betas in the logarithm of 1 - beta, whole numbers as such; all end up where they belong."""
    arm = {
        "optimizer": "adamw",
        "schedule": "cosine_restarts",
        "search": {"beta2": [0.9, 0.999], "cycles": [1, 3], "floor": "auto"},
    }
    spec = study_spec(arms=[arm])
    space = arm_space(spec, spec.arms[0], CURVE)
    seen = [Observation(propose(space, [], [], "minimize", i, 99, 0), float(i)) for i in range(12)]
    points = [o.point for o in seen] + [propose(space, seen, [], "minimize", 12, 4, 0)]
    assert all(d.contains(p[d.name]) for p in points for d in space)
    assert {p["cycles"] for p in points} == {1, 2, 3}
    assert sum(p["beta2"] > 0.99 for p in points) in range(4, 10)
    params = used_params(spec, spec.arms[0], points[-1])
    used = configuration(spec.arms[0], params)
    assert used.optimizer_args["beta2"] == points[-1]["beta2"]
    assert used.schedule_args.keys() == {"cycles", "floor"}


@given(fraction=st.floats(0, 1, exclude_max=True))
def test_a_value_survives_the_way_to_the_sampler_and_back(fraction: float) -> None:
    for axis in (*SPACE, Dimension("beta", 0.9, 0.9999, log=True, complement=True)):
        value = axis.at(fraction)
        assert axis.contains(value)
        assert axis.value(axis.coordinate(value)) == pytest.approx(value)


@given(fractions=st.lists(st.floats(0, 1, exclude_max=True), min_size=3, max_size=3))
def test_candidates_lie_where_their_points_do(fractions: list[float]) -> None:
    point = {axis.name: axis.at(f) for axis, f in zip(SPACE, fractions, strict=True)}
    [snapped] = _snapped(SPACE, np.array([fractions]))
    assert snapped == pytest.approx([axis.fraction(point[axis.name]) for axis in SPACE])


def test_what_is_promoted_tells_different_things() -> None:
    """Of three twins one is run; the second place goes elsewhere, and no point that ran in full."""
    points = [propose(SPACE, [], [], "minimize", i, 99, seed=4) for i in range(12)]
    best = min(points, key=lambda p: abs(math.log10(p["lr"]) + 1.3))
    twins = [{**best, "lr": best["lr"] * factor} for factor in (1.0, 1.001, 1.002)]
    others = [p for p in points if p != best]
    seen = [
        Observation(p, (math.log10(p["lr"]) + 1.3) ** 2 + 1.0, length=0.25)
        for p in (*twins, *others)
    ]
    done = Observation(others[0], (math.log10(others[0]["lr"]) + 1.3) ** 2)
    found = promising(SPACE, [*seen, done], "minimize", 4)
    assert len(found) == 4
    assert others[0] not in found
    assert sum(p in twins for p in found[:2]) == 1
    few = promising(SPACE, seen[:2], "minimize", 1)
    assert few == [min(seen[:2], key=lambda o: o.value or 0.0).point]


def test_a_search_begins_with_the_usual_value_and_tries_the_others_too() -> None:
    space = (SPACE[0], replace(SPACE[1], usual=64), SPACE[2])
    sizes = [propose(space, [], [], "minimize", k, 64, 3)["batch_size"] for k in range(64)]
    assert 8 <= sum(size != 64 for size in sizes) <= 16
    assert set(sizes) == {8, 16, 32, 64}
    spec = study_spec()  # trials of equally many steps, whose largest batch is the usual one
    assert arm_space(spec, spec.arms[0], CURVE)[1].usual == 32
    epochs = study_spec(budget={"max_steps": None, "max_epochs": 3})
    assert arm_space(epochs, epochs.arms[0], CURVE)[1].usual is None


def test_of_a_gradual_axis_the_full_runs_tell() -> None:
    """Twelve short runs are best without decay and four full ones with it."""

    def promoted(gradual: bool, seed: int) -> float:
        space = (SPACE[0], replace(SPACE[2], gradual=gradual))
        points = [propose(space, [], [], "minimize", k, 99, seed) for k in range(16)]
        short = [Observation(p, 1 + 5 * p["weight_decay"], length=0.25) for p in points[:12]]
        full = [Observation(p, 0.5 - 1.5 * p["weight_decay"]) for p in points[12:]]
        return promising(space, [*short, *full], "minimize", 1)[0]["weight_decay"]

    assert min(promoted(True, seed) for seed in range(1, 9)) > 0.08
    assert min(promoted(False, seed) for seed in range(1, 9)) < 0.05


def test_runs_stopped_early_do_not_hide_the_best_among_them() -> None:
    """Near a good point half of the runs are worse than the median, and so stopped: no verdict."""
    space = (SPACE[0], SPACE[2])

    def at(lr: float, value: float, pruned_at: int | None = None) -> Observation:
        return Observation({"lr": lr, "weight_decay": 0.01}, value, pruned_at)

    ran = [at(10 ** (-1 - k / 4), 0.01 * (1 + k) ** 2) for k in range(8)]
    stopped = [at(0.1 * (1 + k / 20), 0.3, 30) for k in range(1, 7)]
    found = estimates(space, [*ran, *stopped], "minimize")
    assert found[0].point == ran[0].point
    assert found == estimates(space, ran, "minimize")
