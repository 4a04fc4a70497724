"""A limit on the whole study, in steps or hours, and what arms get equal amounts of."""

from typing import Any

import pytest

from tests.study.specs import ADAMW, SGD, SLOW, WHOLE, simulate, study_data, study_spec
from tests.study.test_bounds import optimum_at
from tuner.answer import arm_scores
from tuner.errors import UsageError
from tuner.forecast import forecast
from tuner.space import default_point
from tuner.spec import StudySpec, parse_spec
from tuner.stages import History, calibration, full_costs, next_trials, resolved
from tuner.stages.budget import BETWEEN
from tuner.stages.expected import expected

INFO = {"n_train": 1000, "seconds_per_step": 1.0, "seconds_per_eval": 0.0}
DERIVED = ("trials_per_arm", "confirm_seeds", "decide_seeds")
value = optimum_at(1e-2)


def limited(**budget: Any) -> StudySpec:
    """Two arms; SGD's steps take three times as long as AdamW's second."""
    kept = {k: v for k, v in WHOLE["budget"].items() if k not in DERIVED}
    data = study_spec().model_dump(mode="json")
    data["budget"] = {**kept, "max_steps": 1000, **budget}
    data["arms"] = [ADAMW, SGD]
    data["run"] = {"slots": 2}
    return StudySpec.model_validate(data)


@pytest.mark.parametrize("total", [30_000, 60_000])
def test_a_study_spends_its_steps_and_no_more(total: int) -> None:
    trials = simulate(limited(total_steps=total, decide_looks=1), value).values()
    spent = sum(t.steps for t in trials)
    assert 0.6 * total < spent <= total
    stages = {s: sum(t.steps for t in trials if t.stage == s) for s in ("explore", "decide")}
    assert stages["explore"] > 0
    assert stages["decide"] > 0


def test_hours_are_those_of_the_slots() -> None:
    hours = 12.0
    trials = simulate(limited(hours=hours, decide_looks=1), value).values()
    spent = sum(t.wall_seconds for t in trials) / 2 / 3600  # two slots
    assert 0.6 * hours < spent <= hours


def test_hours_also_pass_between_trials_that_take_no_time() -> None:
    """One process proposes and stores them all: a trial of a millisecond is none of it."""
    info = {**INFO, "seconds_per_step": 1e-6}
    for slots in (1, 4):
        plan = forecast(limited(hours=0.1), info, slots=slots)
        trials = sum(plan.sizes.values())
        assert 0.1 * 3600 / 3 < trials * BETWEEN < 0.1 * 3600 * 2
        assert plan.seconds <= 0.1 * 3600


def test_what_hours_came_to_is_the_same_after_a_stop() -> None:
    """The rows of the first stages decide, not the clock: a resumed study has the same plan."""
    spec = limited(hours=10.0)
    whole = simulate(spec, value)
    other = simulate(spec, value, slots=2, interrupt_after=20)
    assert [(t.number, t.arm, t.point) for t in other.values()] == [
        (t.number, t.arm, t.point) for t in whole.values()
    ]
    first = {n: t for n, t in whole.items() if t.stage in ("calibrate", "defaults", "lr-range")}
    fixed = resolved(spec, History(first, {}))
    assert resolved(spec, History(whole, {})) == fixed
    assert not fixed.budget.is_open
    assert StudySpec.model_validate(fixed.model_dump(mode="json")) == fixed
    # Kept in the study's row, the numbers give the same trials without being worked out again.
    after = {n: t for n, t in whole.items() if n < len(first) + 5}
    plans = [
        [t.model_dump() for t in next_trials(s, History(after, {}))][:4] for s in (spec, fixed)
    ]
    assert plans[0] == plans[1]


def test_equal_wall_clock_gives_a_slow_arm_fewer_trials() -> None:
    spec = limited(equal="wall-clock", trials_per_arm=12, confirm_seeds=2, decide_seeds=2)
    history = History(simulate(spec, value), {})
    counts = resolved(spec, history).budget.arm_trials
    assert counts["adamw-warmup_cosine"] == pytest.approx(SLOW * counts["sgd-cosine"], abs=2)
    seconds = [
        sum(t.wall_seconds for t in history.of("screen", a.name) + history.of("explore", a.name))
        for a in spec.arms
    ]
    assert seconds[0] == pytest.approx(seconds[1], rel=0.35)
    assert sum(counts.values()) == pytest.approx(2 * 12 * 4 / 3, abs=1)  # the same total time


def test_a_slow_arm_with_its_equal_share_is_not_under_explored() -> None:
    spec = limited(equal="wall-clock", trials_per_arm=24, confirm_seeds=2, decide_seeds=2)
    history = History(simulate(spec, value), {})
    spec = resolved(spec, history)
    slow, fast = (arm_scores(spec, history, name) for name in ("sgd-cosine", spec.arms[0].name))
    assert len(history.of("explore", "sgd-cosine")) < 0.5 * len(history.of("explore", fast.name))
    assert slow.explored > 0.7 * fast.explored


def test_costs_are_those_of_the_arms_own_runs() -> None:
    history = History(simulate(limited(total_steps=30_000), value), {})
    costs = full_costs(limited(total_steps=30_000), history)
    assert costs["adamw-warmup_cosine"].steps == costs["sgd-cosine"].steps == 1000
    assert costs["sgd-cosine"].seconds == SLOW * costs["adamw-warmup_cosine"].seconds


def test_small_batches_are_paid_for_where_trials_are_equally_many_examples() -> None:
    def plan(sizes: list[int]) -> tuple[float, float]:
        data = limited(total_steps=100_000).model_dump(mode="json")
        data["budget"] |= {"max_steps": None, "max_examples": 32 * 500}
        data["search"] |= {"batch_size": sizes, "reference_batch_size": 32}
        found = forecast(StudySpec.model_validate(data), INFO, slots=1)
        return found.steps, sum(found.sizes.values())

    alone, trials = plan([32])
    with_smaller, fewer = plan([8, 16, 32])  # 4, 2 and 1 times the steps
    assert 60_000 < alone <= 100_000
    assert fewer == pytest.approx(trials * 3 / 7, rel=0.15)
    assert with_smaller * 7 / 3 <= 100_000 * 1.05


@pytest.mark.parametrize(
    ("budget", "key"), [({"total_steps": 9000}, "total_steps"), ({"hours": 0.5}, "hours")]
)
def test_too_small_a_limit_is_refused_with_the_smallest(budget: dict[str, float], key: str) -> None:
    with pytest.raises(UsageError, match=rf"budget\.{key} = .*too small.*from about \d+"):
        forecast(limited(**budget), INFO, slots=2)


def test_a_forecast_keeps_the_limit() -> None:
    found = forecast(limited(total_steps=100_000), INFO, slots=2)
    assert 60_000 < found.steps <= 100_000
    assert found.seconds == pytest.approx(found.steps / 2)
    assert found.spec.budget.trials_per_arm > 10


def test_a_forecast_tells_what_small_batches_cost() -> None:
    data = study_data(search={"batch_size": [8, 16, 32]})
    in_steps = forecast(parse_spec(data, "test.toml", "test"), INFO, slots=2)
    assert (in_steps.trial_steps, in_steps.steps_ratio) == (12, 1)
    del data["budget"]["max_steps"]
    data["budget"]["max_epochs"] = 2
    in_epochs = forecast(parse_spec(data, "test.toml", "test"), INFO, slots=2)
    assert (in_epochs.trial_steps, in_epochs.steps_ratio) == (125, 2)


def test_calibration_says_what_can_be_detected() -> None:
    spec = study_spec(**WHOLE)
    noise = {"calibrate": (0.2, 0.4), "defaults": (0.3,)}
    values = {}

    def noisy(trial: Any) -> float:
        if trial.stage in noise and trial.arm == spec.arms[0].name:
            index = values.setdefault(trial.stage, [])
            index.append(trial.number)
            return noise[trial.stage][len(index) - 1]
        return 0.0

    def first_runs() -> History:
        values.clear()
        first = simulate(spec, noisy, last="defaults").items()
        return History({n: t for n, t in first if t.stage in noise}, {})

    found = calibration(spec, first_runs())
    assert found.sigma == pytest.approx(0.02**0.5)  # the other point tells nothing
    assert (found.runs, found.freedom, found.seeds) == (2, 1, 9)
    assert 0.1 < found.detectable < 0.4
    assert f"{found.detectable:.3g}" in str(found)
    assert "seed noise 0.141 (2 runs; likely 0.086 .. 1.1)" in str(found)
    noise["calibrate"] = (0.2, 0.2)  # a coarse metric
    alike = calibration(spec, first_runs())
    assert (alike.sigma, alike.detectable) == (None, None)
    assert "2 runs ended alike" in str(alike)
    nothing = calibration(spec, History({}, {}))
    assert (nothing.sigma, nothing.detectable) == (None, None)
    assert "unknown" in str(nothing)


def test_runs_from_before_the_budget_was_known_lack_axes_and_still_count() -> None:
    """A limit by the clock becomes trials after calibration, and these afford further axes."""
    data = {**WHOLE, "arms": [ADAMW]}
    few, many = (study_spec(**{**data, "search": {"join": j}}) for j in ("none", "all"))
    trials = simulate(few, lambda t: t.point["lr"], last="defaults")
    first = {n: t for n, t in trials.items() if t.stage in ("calibrate", "defaults")}
    name = many.arms[0].name
    missing = default_point(many, many.arm(name)).keys() - first[min(first)].point.keys()
    assert missing
    found = [estimate.point for estimate in expected(many, History(first, {}), name)]
    assert sorted(map(str, found)) == sorted({str(t.point) for t in first.values()})
