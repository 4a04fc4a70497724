"""The plan of a study: the same whatever the timing, fair to every arm, judged by fresh seeds."""

import math
import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.study.specs import ADAMW, SGD, outcome, simulate, simulated, study_spec
from tuner.answer import arm_scores, compare_study
from tuner.errors import NoCompletedTrialError
from tuner.records import Failure, Trial
from tuner.stages import History, chosen_point, lookback, next_trials, stage_sizes, stop_rules


def quality(trial: Trial) -> float | None:
    """A smooth objective with seed noise; learning rates above 0.02 diverge."""
    if trial.point["lr"] > 0.02:
        return None
    noise = random.Random(f"{trial.seed}{trial.arm}").gauss(0, 0.01)
    better = 0.1 if trial.arm.startswith("adamw") else 0.0
    return better - (math.log10(trial.point["lr"]) + 2) ** 2 + noise


def plan(trials: dict[int, Trial]) -> list[tuple]:
    return [(t.number, t.arm, t.stage, t.seed, t.point, t.stop_rules) for t in trials.values()]


@given(
    order=st.randoms(use_true_random=False),
    slots=st.integers(1, 5),
    interrupt=st.none() | st.integers(0, 40),
)
@settings(max_examples=15, deadline=None)
def test_timing_and_interruption_change_nothing(
    order: random.Random, slots: int, interrupt: int | None
) -> None:
    spec = study_spec(run={"slots": 3})
    reference = simulated(spec, quality)
    other = simulate(spec, quality, slots=slots, order=order, interrupt_after=interrupt)
    assert plan(other) == plan(reference)


def test_every_stage_has_its_trials() -> None:
    spec = study_spec()
    trials = simulated(spec, quality)
    assert list(trials) == list(range(len(trials)))
    assert Counter(t.stage for t in trials.values()) == Counter(stage_sizes(spec))
    per_arm = Counter((t.stage, t.arm) for t in trials.values())
    assert all(
        per_arm[s, "adamw-warmup_cosine"] == per_arm[s, "sgd-cosine"] + (s == "calibrate")
        for s, _ in per_arm
    )


def test_seeds_of_stages_never_meet() -> None:
    trials = simulate(study_spec(study={"seed": 3}), quality).values()
    seeds = {
        stages: {t.seed for t in trials if t.stage in stages}
        for stages in [
            ("calibrate", "defaults", "lr-range", "screen", "explore"),
            ("confirm",),
            ("decide",),
        ]
    }
    explore, confirm, decide = seeds.values()
    assert not explore & confirm
    assert not (explore | confirm) & decide
    other = simulate(study_spec(study={"seed": 4}), quality).values()
    assert not {t.seed for t in trials} & {t.seed for t in other}


def test_arms_share_seeds_so_that_they_can_be_paired() -> None:
    trials = simulated(study_spec(), quality).values()
    for stage in ("explore", "confirm", "decide"):
        seeds = [
            Counter(t.seed for t in trials if t.stage == stage and t.arm == arm)
            for arm in ("adamw-warmup_cosine", "sgd-cosine")
        ]
        assert seeds[0] == seeds[1]


def test_slots_are_kept_busy() -> None:
    spec = study_spec(arms=[ADAMW], run={"slots": 3})
    assert lookback(spec) == 2
    history: dict[int, Trial] = {}
    while True:
        ready = list(next_trials(spec, History(history, {})))
        if ready[0].stage == "explore":
            break
        history |= {t.number: outcome(t, quality) for t in ready}
    started = ready[0].model_copy(update={"state": "running"})
    more = History({**history, started.number: started}, {})
    assert next(next_trials(spec, more)).stage == "explore"


def test_the_winner_of_confirmation_is_judged_by_decision() -> None:
    spec = study_spec()
    trials = simulated(spec, quality)
    history = History(trials, {})
    for arm in spec.arms:
        scores = arm_scores(spec, history, arm.name)
        decide = history.of("decide", arm.name)
        assert scores.seeds == [t.seed for t in decide]
        assert {tuple(t.point.items()) for t in decide} == {
            tuple(chosen_point(spec, history, arm.name).items())
        }


def test_a_single_candidate_is_judged_by_confirmation_too() -> None:
    spec = study_spec(budget={"confirm_top": 1})
    scores = arm_scores(spec, History(simulate(spec, quality), {}), "sgd-cosine")
    assert len(scores.seeds) == spec.budget.confirm_seeds + spec.budget.decide_seeds


def test_without_decide_seeds_confirmation_judges() -> None:
    spec = study_spec(budget={"decide_seeds": 0, "confirm_seeds": 4})
    scores = arm_scores(spec, History(simulate(spec, quality), {}), "sgd-cosine")
    assert len(scores.seeds) == 4


def test_a_diverging_candidate_is_not_chosen() -> None:
    """The best of exploration diverges on fresh seeds; its missing scores count as the worst."""
    spec = study_spec()
    champion: dict[str, dict[str, float]] = {}

    def fragile(trial: Trial) -> float | None:
        if trial.stage in ("explore", "calibrate", "defaults"):
            value = quality(trial)
            return value
        best = champion.setdefault(trial.arm, trial.point)
        return None if trial.point == best else 0.5

    trials = simulate(spec, fragile)
    for arm in spec.arms:
        chosen = chosen_point(spec, History(trials, {}), arm.name)
        assert chosen != champion[arm.name]


def test_an_arm_that_always_diverges_is_not_dropped() -> None:
    spec = study_spec()
    trials = simulate(spec, lambda t: None if t.arm == "sgd-cosine" else quality(t))
    comparison = compare_study(spec, list(trials.values()), {})
    last = comparison.arms[-1]
    assert last.name == "sgd-cosine"
    assert last.scores == [None] * 3
    assert last.verdict in ("worse", "under-explored", "contender")


def test_a_study_where_everything_diverges_has_no_answer() -> None:
    spec = study_spec()
    *trials, last = simulate(spec, lambda t: None).values()
    diverged = Failure(kind="diverged", message="validation acc became nan at step 10")
    trials.append(last.model_copy(update={"failure": diverged}))
    with pytest.raises(NoCompletedTrialError, match=r"no completed trial .* acc became nan at"):
        compare_study(spec, trials, {})


def test_a_planted_winner_is_found() -> None:
    spec = study_spec(budget={"decide_seeds": 8, "trials_per_arm": 12})
    comparison = compare_study(spec, list(simulate(spec, quality).values()), {})
    assert comparison.arms[0].name == "adamw-warmup_cosine"
    assert comparison.arms[0].verdict == "best"


def test_a_run_is_stopped_when_it_is_worse_than_all_that_ended_well_were() -> None:
    """At the same fraction of their runs; the better half ended well, whatever it looked like."""
    assert stop_rules([[1.0, 2.0, 3.0, 4.0]] * 4, "minimize", 4) == ()
    seen = [[0.1, 0.1 * n, 0.2 * n, 1.0 * n] for n in range(5)]
    found = stop_rules(seen, "minimize", 4)
    assert [(r.evaluation, r.threshold) for r in found] == [(3, 0.4)]
    assert stop_rules(seen, "minimize", 4, warmup=0.5) == found
    assert stop_rules(seen, "minimize", 4, warmup=0.8) == ()
    late = [[0.1, -n, -n, 1.0 * n] for n in range(5)]  # the better its end, the worse before
    assert [r.threshold for r in stop_rules(late, "minimize", 4)] == [0]
    upside_down = [[-v for v in run] for run in seen]
    assert [r.threshold for r in stop_rules(upside_down, "maximize", 4)] == [-0.4]
    cut = [*seen, [0.1, 9.0]]  # a run that ended early says nothing of ends
    assert stop_rules(cut, "minimize", 4) == found


def test_nothing_is_stopped_early_when_told_so() -> None:
    trials = simulate(study_spec(run={"prune": False}, budget={"trials_per_arm": 9}), quality)
    assert all(t.stop_rules == () for t in trials.values())


def test_fixed_learning_rates_need_no_range_test() -> None:
    spec = study_spec(arms=[{**ADAMW, "lr": 1e-3}, {**SGD, "lr": [1e-3, 1e-1]}])
    trials = simulate(spec, quality).values()
    assert not any(t.stage == "lr-range" for t in trials)
    explored = {t.point["lr"] for t in trials if t.stage == "explore" and t.arm.startswith("adamw")}
    assert explored == {1e-3}
