"""The decision: contenders get more fresh seeds until they are told apart or the seeds end."""

import random
from collections import Counter
from collections.abc import Callable

from tests.study.specs import ADAMW, SGD, WHOLE, history_of, simulated, study_spec
from tuner.answer import compare_study
from tuner.records import Trial
from tuner.stages import History, expected_sizes, looks, next_trials

ARMS = [ADAMW, SGD, {**SGD, "name": "twin"}, {"optimizer": "lion"}]
BUDGET = {**WHOLE["budget"], "decide_seeds": 20, "decide_looks": 4}


def value(trial: Trial, gap: float = 0.0) -> float:
    """Lion is far behind, AdamW `gap` ahead of the two equal SGDs; seeds move all by 0.01."""
    noise = random.Random(f"{trial.seed}{trial.arm}").gauss(0, 0.01)
    return noise + {"lion-constant": -1.0, "adamw-warmup_cosine": gap}.get(trial.arm, 0.0)


def ahead(trial: Trial) -> float:
    return value(trial, gap=0.5)


def seeds(value: Callable[[Trial], float], arms: list = ARMS) -> Counter[str]:
    spec = study_spec(**{**WHOLE, "budget": BUDGET}, arms=arms)
    trials = simulated(spec, value)
    return Counter(t.arm for t in trials.values() if t.stage == "decide")


def test_looks_are_evenly_spaced() -> None:
    assert looks(study_spec(budget={"decide_seeds": 20, "decide_looks": 4})) == [5, 10, 15, 20]
    assert looks(study_spec(budget={"decide_seeds": 3, "decide_looks": 5})) == [1, 2, 3]
    assert looks(study_spec(budget={"decide_seeds": 0})) == []


def test_a_clear_winner_ends_the_study_early() -> None:
    counts = seeds(ahead)
    assert set(counts) == {"adamw-warmup_cosine", "sgd-cosine", "twin", "lion-constant"}
    assert max(counts.values()) < 20


def test_equal_arms_use_all_seeds_and_a_loser_does_not() -> None:
    counts = seeds(value)
    assert counts["lion-constant"] < 20
    assert max(counts.values()) == 20
    later = {arm: n for arm, n in counts.items() if n == 20}
    assert len(later) >= 2  # a rival is of no use alone


def test_a_single_arm_is_measured_and_not_compared() -> None:
    """It has nobody to be told apart from, so a few seeds do."""
    assert seeds(value, arms=[ADAMW]) == {"adamw-warmup_cosine": 3}


def test_contenders_share_their_seeds() -> None:
    spec = study_spec(**{**WHOLE, "budget": BUDGET}, arms=ARMS)
    history = history_of(simulated(spec, value))
    lists = [[t.seed for t in history.of("decide", arm.name)] for arm in spec.arms]
    longest = max(lists, key=len)
    assert all(mine == longest[: len(mine)] for mine in lists)


def test_a_study_cut_anywhere_in_the_decision_goes_on_the_same() -> None:
    spec = study_spec(**{**WHOLE, "budget": BUDGET}, arms=ARMS)
    trials = simulated(spec, value)
    first = min(n for n, t in trials.items() if t.stage == "decide")
    for cut in range(first, len(trials) + 1, 3):
        known = {n: t for n, t in trials.items() if n < cut}
        planned = list(next_trials(spec, history_of(known)))
        for trial in planned:
            then = trials[trial.number]
            assert (trial.arm, trial.seed, trial.point) == (then.arm, then.seed, then.point)
        assert bool(planned) == (cut < len(trials))


def test_the_verdict_knows_of_the_looks() -> None:
    spec = study_spec(**{**WHOLE, "budget": BUDGET}, arms=ARMS)
    comparison = compare_study(spec, list(simulated(spec, value).values()), {})
    assert comparison.looks == 4


def test_expected_sizes_end_as_what_ran() -> None:
    spec = study_spec(**{**WHOLE, "budget": BUDGET}, arms=ARMS)
    trials = simulated(spec, value)
    ran = Counter(t.stage for t in trials.values())
    assert Counter(expected_sizes(spec, history_of(trials))) == ran
    begun = expected_sizes(spec, History({}, {}))
    assert all(begun[stage] >= count for stage, count in ran.items() if stage != "explore")
