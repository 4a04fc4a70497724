"""Where a study stands while it runs: stage, arms, best with its interval, what is left."""

import pytest

from tests.study.specs import CURVE, WHOLE, simulate, study_spec
from tests.study.test_bounds import optimum_at
from tuner.answer import compare_study
from tuner.records import Failure
from tuner.stages import History, leading
from tuner.standing import best_of, remaining, standing_of

SPEC = study_spec(**WHOLE)


@pytest.fixture(scope="module")
def trials() -> dict:
    return simulate(SPEC, optimum_at(1e-2))


def part(trials: dict, count: int) -> History:
    known = {n: t for n, t in trials.items() if n < count}
    curves = {n: CURVE for n, t in known.items() if t.stage == "lr-range"}
    return History(known, curves)


def test_before_anything_has_run() -> None:
    standing = standing_of(SPEC, History({}, {}))
    assert standing.stage == "lr-range"
    assert all(arm.best is None and arm.finished == 0 for arm in standing.arms)
    assert (standing.left.steps, standing.left.seconds) == (None, None)
    assert standing.left.trials == sum(standing.expected.values())


def test_every_moment_adds_up(trials: dict) -> None:
    left = []
    for count in range(0, len(trials) + 1, 5):
        standing = standing_of(SPEC, part(trials, count))
        assert sum(standing.finished.values()) == count
        assert sum(arm.finished for arm in standing.arms) == count
        assert sum(arm.expected for arm in standing.arms) == sum(standing.expected.values())
        assert standing.left.trials == sum(standing.expected.values()) - count
        left.append(standing.left.steps)
    known = [steps for steps in left if steps is not None]
    assert known == sorted(known, reverse=True)


def test_at_the_end_nothing_is_left_and_fresh_runs_judge(trials: dict) -> None:
    standing = standing_of(SPEC, part(trials, len(trials)))
    assert (standing.stage, standing.left.trials, standing.left.steps) == (None, 0, 0)
    for arm in standing.arms:
        assert arm.best.fresh
        assert arm.best.runs >= 3
        assert arm.best.low < arm.best.value < arm.best.high


def test_while_an_arm_chooses_its_best_is_what_its_runs_expect(trials: dict) -> None:
    """Not the score of the run that was best, which is lucky; with the model's interval."""
    history = part(trials, min(n for n, t in trials.items() if t.stage == "confirm"))
    arm = SPEC.arms[0].name
    best, likely = best_of(SPEC, history, arm), leading(SPEC, history, arm)
    assert (best.value, best.low, best.high) == (likely.value, likely.low, likely.high)
    assert (best.fresh, best.runs > 0) == (False, True)
    assert best.low < best.value < best.high
    stages = ("calibrate", "defaults", "explore")
    luckiest = max(t.value for stage in stages for t in history.of(stage, arm))
    assert best.value < luckiest


def test_at_the_end_show_and_compare_say_the_same(trials: dict) -> None:
    """A run that diverged included, which counts as the worst in both."""
    arm = SPEC.arms[0].name
    last = max(n for n, t in trials.items() if t.stage == "decide" and t.arm == arm)
    lost = trials[last].model_copy(update={"state": "diverged", "value": None})
    for known in (trials, {**trials, last: lost}):
        history = part(known, len(known))
        found = {a.name: a for a in compare_study(SPEC, [*known.values()], history.curves).arms}
        for standing in standing_of(SPEC, history).arms:
            judged = found[standing.name]
            numbers = (standing.best.value, standing.best.low, standing.best.high)
            assert numbers == (judged.mean, judged.ci_low, judged.ci_high)


def test_time_left_counts_slots_and_short_runs(trials: dict) -> None:
    first = min(n for n, t in trials.items() if t.stage == "screen")
    history = part(trials, first)
    left = remaining(SPEC, history)
    short, ranges = 16, 0
    full = left.trials - short - ranges
    assert left.steps == full * 400 + short * 80
    two = SPEC.model_copy(update={"run": SPEC.run.model_copy(update={"slots": 2})})
    assert remaining(two, history).seconds == pytest.approx(left.seconds / 2)


def test_failures_are_told_by_class(trials: dict) -> None:
    diverged = trials[3].model_copy(
        update={"state": "diverged", "failure": Failure(kind="diverged", message="x")}
    )
    standing = standing_of(SPEC, History({**trials, 3: diverged}, {}))
    assert standing.failures == {"diverged": 1}


def test_what_is_left_costs_what_the_stage_costs_so_far(trials: dict) -> None:
    """The batch size that was chosen, not the reference, says how many steps are still to come."""
    first = min(n for n, t in trials.items() if t.stage == "decide")
    smaller = {
        n: t.model_copy(update={"steps": 4 * t.steps, "wall_seconds": 2 * t.wall_seconds})
        if t.stage == "confirm"
        else t
        for n, t in trials.items()
    }
    usual, longer = (remaining(SPEC, part(known, first)) for known in (trials, smaller))
    assert longer.steps == 4 * usual.steps
    assert longer.seconds == pytest.approx(2 * usual.seconds)
