"""One factor at a time: matched arms only, and batch sizes that the search chose itself."""

import numpy as np
import pytest

from tuner.compare.batches import Tried, across_answer, across_arms, batch_arm
from tuner.compare.marginal import Cell, marginalise

SEEDS = 10


def rng():
    return np.random.default_rng(0)


def cells(effects, sd=1.0, seeds=SEEDS, seed=2):
    """(level, block) -> mean; a seed shifts all arms alike."""
    noise = np.random.default_rng(seed)
    shared = noise.normal(0, 3, seeds)
    return [
        Cell(f"{block}-{level}", level, block,
             {s: float(m + shared[s] + sd * noise.standard_normal()) for s in range(seeds)})
        for (level, block), m in effects.items()
    ]  # fmt: skip


def judge(found, direction="maximize", factor="schedule"):
    return marginalise(found, direction, factor=factor, metric="acc", rng=rng())


FOUR = {("cosine", "adam"): 2.0, ("constant", "adam"): 0.0,
        ("cosine", "sgd"): 7.0, ("constant", "sgd"): 5.0}  # fmt: skip


@pytest.mark.parametrize("direction", ["maximize", "minimize"])
def test_a_factor_is_found_over_matched_pairs(direction):
    m = judge(cells(FOUR), direction)
    [c] = m.contrasts
    assert (c.level, c.other, len(c.blocks), c.seeds) == ("cosine", "constant", 2, SEEDS)
    assert c.low < 2 < c.high
    assert c.p_value <= 0.05
    assert c.better == ("cosine" if direction == "maximize" else "constant")
    assert not c.interaction
    assert f"{c.better} is better than" in m.answer


def test_an_unmatched_arm_does_not_speak():
    # Pooled means would say that constant is better: the strong optimizer ran with it alone.
    effects = {("cosine", "weak"): 1.0, ("constant", "weak"): 0.0, ("constant", "strong"): 50.0}
    m = judge(cells(effects))
    [c] = m.contrasts
    assert len(c.blocks) == 1
    assert c.difference == pytest.approx(1, abs=1)
    assert m.levels["constant"] == ["weak-constant", "strong-constant"]


def test_a_design_that_cannot_answer_says_so():
    m = judge(cells({("cosine", "adam"): 1.0, ("constant", "sgd"): 0.0}))
    assert m.contrasts == []
    assert m.answer == (
        "This design cannot answer: cosine against constant: no two arms differ in schedule alone "
        "(cosine only with adam; constant only with sgd)."
    )
    same = judge(cells({("cosine", "adam"): 1.0, ("cosine", "sgd"): 0.0}))
    assert same.answer == (
        "Every arm has the same schedule (cosine), so there is nothing to compare."
    )


def test_an_effect_that_turns_round_is_an_interaction():
    effects = {**FOUR, ("cosine", "sgd"): 3.0}  # better for adam, worse for sgd
    m = judge(cells(effects, sd=0.3))
    [c] = m.contrasts
    assert c.interaction
    assert c.better is None
    assert "That depends on the rest" in m.answer


def test_nothing_found_is_not_called_equal_and_one_seed_gives_no_verdict():
    m = judge(cells(dict.fromkeys(FOUR, 1.0)))
    assert m.contrasts[0].better is None
    assert "no difference larger than" in m.answer
    [c] = judge(cells(FOUR, seeds=1)).contrasts
    assert (c.p_value, c.low, c.better) == (None, None, None)
    assert "one seed gives no verdict" in judge(cells(FOUR, seeds=1)).answer


def test_equal_levels_are_told_apart_in_at_most_5_percent():
    wrong = 0
    for k in range(500):
        m = judge(cells({(lv, b): 0.0 for lv in "abc" for b in "xy"}, seed=k))
        wrong += any(c.better for c in m.contrasts)
    assert wrong / 500 <= 0.05 + 2 * np.sqrt(0.05 * 0.95 / 500)


def tried(batch, values, end=10_000.0, seconds=5.0):
    return [
        Tried(batch, v, [(end / 2, seconds / 2, v - 0.2), (end, seconds, v)] if v is not None
              else [(end / 4, seconds / 4, -9.0)])
        for v in values
    ]  # fmt: skip


def test_batch_sizes_are_compared_at_equal_trials():
    # 64 was tried twenty times: its best trial is the best of all, at equal trials it is not.
    noise = np.random.default_rng(1)
    many, few = 0.8 + 0.1 * noise.standard_normal(20), 0.85 + 0.01 * noise.standard_normal(4)
    arm = batch_arm("a", [*tried(64, many), *tried(256, few)], {}, "maximize", rng())
    assert arm.equal_trials == 4
    small, large = arm.levels
    assert max(many) > max(few)
    assert large.best > small.best
    assert small.low < small.best < small.high
    assert "batch size 256 leads" in arm.answer
    assert "Not told apart from it: 64" in arm.answer


def test_a_batch_size_that_is_plainly_worse_is_found():
    noise = np.random.default_rng(2).standard_normal(16) / 100
    trials = [*tried(32, 0.9 + noise[:8]), *tried(512, 0.5 + noise[8:])]
    arm = batch_arm("a", trials, {32: [0.89, 0.9]}, "maximize", rng())
    assert arm.levels[1].p_value <= 0.05
    assert "Worse: 512" in arm.answer
    assert (arm.levels[0].confirmed, arm.levels[0].confirmed_runs) == (pytest.approx(0.895), 2)
    assert arm.levels[1].confirmed is None


def test_equal_examples_and_equal_seconds_cut_the_longer_runs():
    trials = [*tried(32, [0.5, 0.6], 1_000, 4), *tried(64, [0.7, 0.8], 2_000, 4)]
    arm = batch_arm("a", trials, {}, "maximize", rng())
    assert (arm.examples, arm.seconds) == (1_000, 4)
    small, large = arm.levels
    assert small.at_examples == small.best
    assert large.at_examples == pytest.approx(0.6)  # half way: 0.2 less
    assert large.at_seconds == large.best
    assert (small.truncated, large.truncated) == ([], ["examples"])


def test_what_a_search_cannot_say_about_batch_sizes():
    assert "same" not in batch_arm("a", tried(64, [1.0, 2.0]), {}, "maximize", rng()).answer
    one = batch_arm("a", tried(64, [1.0, 2.0]), {}, "maximize", rng())
    assert "its trials all have batch size 64" in one.answer
    rare = batch_arm("a", [*tried(64, [1.0, 2.0]), *tried(128, [5.0])], {}, "maximize", rng())
    assert "Tried once, which gives no verdict: 128" in rare.answer
    assert rare.levels[1].low is None
    none = batch_arm("a", tried(64, [None, None]), {}, "maximize", rng())
    assert "nothing can be said" in none.answer


def test_equal_batch_sizes_are_told_apart_in_at_most_5_percent():
    drawn = np.random.default_rng(8)
    wrong = 0
    for _ in range(300):
        trials = [t for b in (16, 32, 64) for t in tried(b, drawn.standard_normal(6))]
        arm = batch_arm("a", trials, {}, "minimize", drawn)
        wrong += any(level.p_value is not None and level.p_value <= 0.05 for level in arm.levels)
    assert wrong / 300 <= 0.05 + 2 * np.sqrt(0.05 * 0.95 / 300)


def test_an_arm_that_is_better_only_at_large_batch():
    small = {"a": tried(32, [0.9, 0.91, 0.9]), "b": tried(32, [0.8, 0.81])}
    large = {"a": tried(512, [0.5, 0.52]), "b": tried(512, [0.85, 0.84])}
    rows = across_arms({n: [*small[n], *large[n]] for n in "ab"}, "maximize")
    assert [(r.batch_size, r.trials, r.leader) for r in rows] == [(32, 2, "a"), (512, 2, "b")]
    assert "Not the same arm leads" in across_answer(rows)
    assert "a leads at every" in across_answer([rows[0], rows[0]])
    assert "no statement" in across_answer(rows[:1])
    assert across_arms({"a": tried(32, [None])}, "maximize") == []
