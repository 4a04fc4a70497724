"""Short runs first: their schedules rescaled, the promising ones again at full length."""

import math
import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.study.specs import ADAMW, CURVE, SGD, WHOLE, history_of, simulate, simulated, study_spec
from tuner.jobs import Places, job_of
from tuner.records import Trial
from tuner.search import promising
from tuner.spec_sections import PRESETS
from tuner.stages import full_trials, next_trials, stage_sizes
from tuner.stages.bounds import explore_cost, promoted


def quality(trial: Trial) -> float | None:
    """Best at lr 0.02 in a full run and a little above in a short one, which ends lower."""
    if trial.point["lr"] > 0.2:
        return None
    noise = random.Random(f"{trial.seed}{trial.arm}{trial.length}").gauss(0, 0.01)
    short = trial.length < 1
    return -((math.log10(trial.point["lr"]) + (1.5 if short else 1.7)) ** 2) + noise - 0.5 * short


def plan(trials: dict[int, Trial]) -> list[tuple]:
    return [
        (t.number, t.arm, t.stage, t.seed, t.point, t.stop_rules, t.length) for t in trials.values()
    ]


@given(
    order=st.randoms(use_true_random=False),
    slots=st.integers(1, 5),
    interrupt=st.none() | st.integers(0, 90),
    equal=st.sampled_from(["steps", "wall-clock"]),
)
@settings(max_examples=6, deadline=None)
@pytest.mark.slow
def test_timing_and_interruption_change_nothing_of_the_whole_protocol(
    order: random.Random, slots: int, interrupt: int | None, equal: str
) -> None:
    budget = {**WHOLE["budget"], "trials_per_arm": 6, "decide_seeds": 6, "equal": equal}
    spec = study_spec(**{**WHOLE, "budget": budget}, run={"slots": 3})
    reference = simulated(spec, quality)
    other = simulate(spec, quality, slots=slots, order=order, interrupt_after=interrupt)
    assert plan(other) == plan(reference)
    assert list(reference) == list(range(len(reference)))


def test_every_arm_screens_alike_and_promotes_good_ones() -> None:
    """Within three deviations of the best one's noise; the spread of all is a hundred times that.

    Of equally good ones the model takes those that tell more, and so not always the best run.
    """
    spec = study_spec(**WHOLE)
    history = history_of(simulated(spec, quality))
    for arm in spec.arms:
        short = history.of("screen", arm.name)
        assert [t.length for t in short] == [0.2] * 8
        scores = {tuple(t.point.values()): t.value for t in short if t.value is not None}
        full = history.of("explore", arm.name)
        promoted = {tuple(t.point.values()) for t in full[:2]}
        assert len(promoted) == 2
        assert all(scores[point] > max(scores.values()) - 0.03 for point in promoted)
        assert {t.length for t in full} == {1.0}
        assert not {t.seed for t in full} & {t.seed for t in short}
        assert len(full[: full_trials(spec, arm.name)]) == 3


@pytest.mark.parametrize("trials", [*range(6, 30), 64, 200])
def test_short_runs_save_a_third_of_the_exploration_whatever_the_budget(trials: int) -> None:
    """By count, before anything is stopped early; rounded up, 12 configurations saved 33 %."""
    spec = study_spec(**{**WHOLE, "budget": {**WHOLE["budget"], "trials_per_arm": trials}})
    arm = spec.arms[0].name
    assert explore_cost(spec, arm) <= 0.65 * trials
    assert 1 <= promoted(spec, arm) <= full_trials(spec, arm)


def test_promotion_asks_the_model_and_not_one_lucky_run() -> None:
    """The best short run is luck far from the optimum, as its neighbours tell."""
    spec = study_spec(**{**WHOLE, "budget": {**WHOLE["budget"], "trials_per_arm": 16}})
    far: dict[str, float] = {}

    def lucky(trial: Trial) -> float | None:
        away = abs(math.log10(trial.point["lr"]) + 1.7) > 0.6
        if (
            trial.stage == "screen"
            and away
            and far.setdefault(trial.arm, trial.number) == (trial.number)
        ):
            return -0.499
        return quality(trial)

    history = history_of(simulate(spec, lucky, last="explore"))
    for arm in spec.arms:
        promoted = [t.point for t in history.of("explore", arm.name)[:4]]
        assert history.trials[far[arm.name]].point != promoted[0]


def test_calibration_runs_the_first_guess_and_is_not_repeated() -> None:
    """Several seeds where the range test points; the search begins elsewhere."""
    budget = {**WHOLE["budget"], "screen_length": 1.0}
    spec = study_spec(**{**WHOLE, "budget": budget})
    history = history_of(simulated(spec, quality))
    first = history.of("calibrate", spec.arms[0].name)
    assert [t.point["lr"] for t in first] == [CURVE.suggested_lr] * 2
    assert len({t.seed for t in first}) == 2
    starts = [history.of("explore", arm.name)[0].point for arm in spec.arms]
    assert starts[0] != first[0].point
    assert starts[1]["lr"] == CURVE.suggested_lr


def test_a_short_run_is_a_shorter_job_of_the_same_schedule() -> None:
    places = Places((), Path("checkpoints"))
    spec = study_spec(**WHOLE)
    trials = simulated(spec, quality)
    short = next(t for t in trials.values() if t.stage == "screen")
    job = job_of(spec, short, places)
    assert (job.max_steps, job.evaluations, job.configuration.schedule) == (
        *(80, 4),
        short.configuration.schedule,
    )
    full = next(t for t in trials.values() if t.stage == "confirm")
    assert job_of(spec, full, places).max_steps == 400


@pytest.mark.parametrize("preset", ["quick", "standard"])
def test_exploration_costs_a_third_less_before_any_run_is_stopped(preset: str) -> None:
    trials = PRESETS[preset]["trials_per_arm"]
    budget = {**WHOLE["budget"], "trials_per_arm": trials, "extend_trials": 0}
    steps = []
    for changes in ({}, {"screen_length": 1.0}):
        spec = study_spec(**{**WHOLE, "budget": {**budget, **changes}}, run={"prune": False})
        history = history_of(simulate(spec, quality, last="explore"))
        steps.append(sum(t.steps for s in ("screen", "explore") for t in history.of(s)))
    assert steps[0] <= 0.65 * steps[1]


@pytest.mark.parametrize(
    "budget",
    [{"screen_length": 1.0}, {"max_steps": 100}, {"trials_per_arm": 5}],
    ids=["told so", "trials too short", "too few of them"],
)
def test_without_screening_all_trials_are_full(budget: dict[str, float]) -> None:
    spec = study_spec(**{**WHOLE, "budget": {**WHOLE["budget"], **budget}})
    assert stage_sizes(spec)["screen"] == 0
    trials = simulated(spec, quality).values()
    assert {t.length for t in trials} == {1.0}
    explored = [t for t in trials if t.stage == "explore" and t.arm == "sgd-cosine"]
    assert len(explored) >= spec.budget.trials_per_arm


def test_stop_rules_know_only_their_own_arm_and_length() -> None:
    """One arm is a hundred times worse: its thresholds are its own."""
    budget = {**WHOLE["budget"], "trials_per_arm": 12, "refine": 0.5}
    spec = study_spec(**{**WHOLE, "budget": budget})
    trials = simulate(
        spec, lambda t: (quality(t) or -9.0) - (100.0 if t.arm == "sgd-cosine" else 0.0)
    )
    for arm, low, high in (("sgd-cosine", -200, -90), ("adamw-warmup_cosine", -20, 1)):
        rules = [r for t in trials.values() if t.arm == arm for r in t.stop_rules]
        assert rules
        assert all(low < rule.threshold < high for rule in rules)
    # Full runs are never measured against the short ones, which end 0.5 lower.
    assert not any(
        t.stop_rules for t in trials.values() if t.stage in ("confirm", "decide", "defaults")
    )


def test_the_promoted_and_the_first_are_never_stopped() -> None:
    spec = study_spec(**WHOLE, arms=[ADAMW, SGD])
    history = history_of(simulated(spec, quality))
    for arm in spec.arms:
        assert all(t.stop_rules == () for t in history.of("explore", arm.name)[:2])
        assert history.of("screen", arm.name)[0].stop_rules == ()


def test_the_choice_follows_the_full_runs() -> None:
    """The short runs' optimum lies elsewhere; what they promote is judged at full length."""
    spec = study_spec(**{**WHOLE, "budget": {**WHOLE["budget"], "trials_per_arm": 24}})
    history = history_of(simulate(spec, quality))
    for arm in spec.arms:
        lr = history.of("decide", arm.name)[0].point["lr"]
        assert abs(math.log10(lr) + 1.7) < 0.3


def test_a_plan_works_out_once_what_is_promoted(monkeypatch: pytest.MonkeyPatch) -> None:
    """And not for every place that waits: that grew with the square of the number of trials."""
    spec = study_spec(**{**WHOLE, "budget": {**WHOLE["budget"], "trials_per_arm": 40}})
    screened = simulate(spec, quality, last="screen")
    asked = []

    def counted(*arguments: object) -> list[dict[str, float]]:
        asked.append(arguments)
        return promising(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr("tuner.stages.explore.promising", counted)
    planned = list(next_trials(spec, history_of(screened)))
    assert {t.stage for t in planned} == {"explore"}
    assert len(asked) == len(spec.arms)
