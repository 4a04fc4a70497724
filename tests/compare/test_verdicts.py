"""Verdicts and the answer sentence on planted cases."""

import io
import json

import numpy as np
import pytest
from rich.console import Console

from tuner.compare import wording
from tuner.compare.statistics import SEEDS_CAP
from tuner.compare.terminal import comparison_table, lr_curve_text
from tuner.compare.verdicts import ArmScores, compare, comparison_json
from tuner.records import LrCurve

KEYS = {
    "name", "optimizer", "schedule", "params", "seeds", "scores", "mean", "ci_low", "ci_high",
    "p_best", "verdict",
}  # fmt: skip


def arm(name, scores, seeds=None, **more):
    params = {"batch_size": 64, "lr": 0.003, "weight_decay": 0.01}
    return ArmScores(
        **{"name": name, "optimizer": name, "schedule": "cosine", "params": params, **more},
        seeds=list(seeds or range(len(scores))),
        scores=list(scores),
    )


def noisy(mean, sd=0.01, n=8, seed=0):
    return [float(s) for s in mean + sd * np.random.default_rng(seed).standard_normal(n)]


def judge(*arms, direction="minimize", **options):
    return compare(arms, direction, rng=np.random.default_rng(0), metric="loss", **options)


def said(comparison):
    return {a.name: a.verdict for a in comparison.arms}


@pytest.mark.parametrize("direction", ["minimize", "maximize"])
def test_a_clear_winner_is_best_and_the_others_are_worse(direction):
    sign = 1 if direction == "minimize" else -1
    arms = [
        arm(n, noisy(sign * m, seed=k))
        for k, (n, m) in enumerate(zip("bac", (2, 1, 3), strict=True))
    ]
    c = judge(*arms, direction=direction)
    assert said(c) == {"a": "best", "b": "worse", "c": "worse"}
    assert [a.name for a in c.arms] == ["a", "b", "c"]
    best, second, _ = c.arms
    assert best.ci_low < best.mean < best.ci_high
    assert best.p_best > 0.99
    assert best.p_value <= 0.05
    assert second.p_value <= 0.05
    assert best.difference is None
    assert second.difference == pytest.approx(sign * 1, abs=0.05)
    assert second.difference_low < second.difference < second.difference_high
    assert best.seeds_needed is None
    assert second.seeds_needed is None
    assert sum(a.p_best for a in c.arms) == pytest.approx(1)


def test_the_answer_names_the_settings_of_the_winner():
    c = judge(arm("adamw", noisy(1)), arm("sgd", noisy(2, seed=1)))
    assert c.answer.startswith(
        "adamw is best: adamw with cosine (lr 0.003, batch size 64, weight decay 0.01) reached loss"
    )
    assert "8 seeds" in c.answer
    # as many digits as the interval supports, at both ends
    assert "Worse after correction: sgd (by 0.9985, interval 0.9890 to 1.0083)" in c.answer


def test_arms_that_are_alike_on_every_seed_are_not_promised_a_decision_by_more_seeds():
    """Accuracy 1 on every seed, say."""
    c = judge(arm("a", [1.0] * 4), arm("b", [1.0] * 4))
    assert said(c) == {"a": "contender", "b": "contender"}
    assert "Alike on every seed: b. loss is too coarse" in c.answer
    assert "more seeds" not in c.answer


def test_arms_that_are_not_told_apart_are_contenders_with_seeds_still_needed():
    c = judge(arm("a", noisy(1)), arm("b", noisy(1.004, seed=1)), arm("c", noisy(5, seed=2)))
    assert said(c)["c"] == "worse"
    leader, other = c.arms[:2]
    assert (leader.verdict, other.verdict) == ("contender", "contender")
    assert other.seeds_needed >= 1
    assert leader.seeds_needed is None
    assert "No arm is best beyond doubt" in c.answer
    assert "no difference larger than" in c.answer
    assert "more seed" in c.answer
    assert " = " not in c.answer


def test_hopelessly_close_arms_need_more_than_the_cap():
    a = noisy(1)
    b = [x + d for x, d in zip(a, [0.01, -0.01] * 4, strict=True)]
    c = judge(arm("a", a), arm("b", b), margin=1e-4)
    assert c.arms[1].seeds_needed == SEEDS_CAP + 1
    assert "more than 100 more seeds" in c.answer


@pytest.mark.parametrize("n", [1, 2, 3])
def test_close_arms_with_few_seeds_get_no_verdict(n):
    c = judge(arm("a", noisy(1, n=n)), arm("b", noisy(1.01, n=n, seed=1)))
    assert set(said(c).values()) == {"contender"}


def test_one_seed_gives_no_verdict_however_large_the_difference():
    c = judge(arm("a", [0.1]), arm("b", [99.0]), arm("c", [99.0], flags=["at-bound-lr"]))
    assert said(c) == {"a": "contender", "b": "contender", "c": "under-explored"}
    assert [x.p_best for x in c.arms] == [pytest.approx(1 / 3)] * 3
    assert all(x.ci_low is None and x.p_value is None for x in c.arms)
    assert "no interval" in c.answer


def test_seeds_that_are_not_common_prove_nothing():
    c = judge(arm("a", noisy(1)), arm("b", noisy(9, seed=1), seeds=range(50, 58)))
    assert set(said(c).values()) == {"contender"}
    assert c.arms[1].difference is None


def test_five_seeds_decide_only_what_is_plain():
    c = judge(arm("a", noisy(1, n=5)), arm("b", noisy(2, n=5, seed=1)))
    assert said(c) == {"a": "best", "b": "worse"}
    assert "t tests" in c.method


def test_an_arm_dropped_early_is_still_judged_by_its_seeds():
    c = judge(arm("a", noisy(1)), arm("b", noisy(3, n=4, seed=1)), arm("c", noisy(2, seed=2)))
    assert said(c) == {"a": "best", "b": "worse", "c": "worse"}


def test_the_leader_does_not_depend_on_lucky_seeds():
    # b ran on the two easy seeds only; on them a is better.
    easy = [1.0, 1.1]
    c = judge(arm("a", [*easy, 5.0, 5.2, 5.1, 4.9]), arm("b", [1.2, 1.3]))
    assert c.arms[0].name == "a"
    assert c.arms[1].difference == pytest.approx(0.2)


def test_equivalent_within_a_given_margin_even_when_measurably_worse():
    a = noisy(1)
    b = [x + 0.01 + d for x, d in zip(a, noisy(0, 0.001, seed=3), strict=True)]
    assert said(judge(arm("a", a), arm("b", b), margin=0.05))["b"] == "equivalent"
    assert said(judge(arm("a", a), arm("b", b), margin=0.005))["b"] == "worse"
    c = judge(arm("a", a), arm("b", b), margin=0.05)
    assert "worse than the leader where it was measured" in c.arms[1].note
    assert "Equivalent within 0.05: b (no difference larger than" in c.answer


def test_without_a_margin_the_deviation_over_seeds_is_taken():
    a = noisy(1, n=20)
    b = [x + d for x, d in zip(a, noisy(0, 0.005, n=20, seed=3), strict=True)]
    c = judge(arm("a", a), arm("b", b))
    assert c.arms[1].verdict == "equivalent"
    assert not c.margin_given
    assert "the deviation over seeds" in c.answer


def test_an_arm_whose_search_is_unfinished_is_never_worse():
    base = [arm("a", noisy(1), explored=24), arm("b", noisy(2, seed=1), explored=24)]
    bound = judge(base[0], base[1].model_copy(update={"flags": ["at-bound-lr"]}))
    assert said(bound)["b"] == "under-explored"
    assert "its best lr lies on a bound of the search box" in bound.answer
    few = judge(base[0], base[1].model_copy(update={"explored": 5}))
    assert said(few)["b"] == "under-explored"
    assert "only 5 completed trials, another arm has 24" in few.arms[1].note
    assert said(judge(*base))["b"] == "worse"


def test_a_diverged_seed_counts_as_the_worst_and_is_reported():
    good = noisy(1)
    fragile = [0.5, 0.5, 0.5, None, 0.5, None, 0.5, None]
    steady, c = arm("steady", good), None
    c = judge(steady, arm("fragile", fragile), arm("bad", noisy(1.5, seed=2)))
    broken = next(a for a in c.arms if a.name == "fragile")
    assert broken.scores == fragile
    assert broken.mean > 0.9
    assert "diverged on 3 of 8 seeds" in broken.note
    assert broken.verdict != "equivalent"
    hopeless = judge(steady, arm("x", [None] * 8))
    assert said(hopeless) == {"steady": "best", "x": "worse"}


def test_an_arm_that_wins_on_average_and_loses_in_the_worst_seed_says_so():
    steady = noisy(1.0, n=10)
    risky = [*noisy(0.8, n=9, seed=1), 1.5]
    c = judge(arm("steady", steady), arm("risky", risky))
    assert c.arms[0].name == "risky"
    assert "its worst seed is worse than that of steady" in c.arms[0].note
    assert "Caveat for risky" in c.answer
    assert c.p_better[0][1] == pytest.approx(0.9)
    assert "worst seed" not in judge(arm("a", noisy(1)), arm("b", noisy(2, seed=1))).answer


def test_two_identical_arms_are_equivalent_and_nothing_more():
    c = judge(arm("a", noisy(1)), arm("b", noisy(1)), arm("c", noisy(3, seed=1)))
    assert said(c) == {"a": "contender", "b": "equivalent", "c": "worse"}
    assert "no difference larger than 0 detected" in c.answer


def test_identical_scores_are_not_called_equal_or_different():
    c = judge(arm("a", [0.5] * 8), arm("b", [0.5] * 8))
    assert set(said(c).values()) == {"contender"}
    assert [x.p_best for x in c.arms] == [0.5, 0.5]
    json.dumps(comparison_json("s", "loss", c), allow_nan=False)


def test_a_single_arm_is_reported_without_a_verdict():
    c = judge(arm("a", noisy(1)))
    assert said(c) == {"a": "contender"}
    assert c.answer.startswith("Only one arm")
    assert c.arms[0].p_best == 1


@pytest.mark.parametrize(
    ("arms", "message"),
    [
        ([], "no arm"),
        ([arm("a", [1.0]), arm("a", [2.0])], "differ"),
        ([arm("a", [1.0, 2.0], seeds=[3, 3])], "twice"),
        ([arm("a", [1.0, 2.0], seeds=[3])], "one score for each seed"),
        ([arm("a", [])], "at least one"),
        ([arm("a", [float("nan")])], "NaN"),
        ([arm("a", [None]), arm("b", [None])], "every run diverged"),
    ],
)
def test_bad_input_is_refused(arms, message):
    with pytest.raises(ValueError, match=message):
        judge(*arms)


def test_json_has_the_documented_keys_and_is_finite():
    arms = arm("a", [0.1]), arm("b", [0.2, None], seeds=[0, 1])
    for c in (judge(*arms), judge(arm("a", noisy(1)), arm("b", noisy(2, seed=1)))):
        data = json.loads(json.dumps(comparison_json("digits", "loss", c), allow_nan=False))
        assert data.keys() >= {"study", "metric", "direction", "arms", "answer"}
        assert data["study"] == "digits"
        assert all(a.keys() >= KEYS for a in data["arms"])


def test_the_same_rows_give_the_same_comparison():
    arms = [arm("a", noisy(1, n=15)), arm("b", noisy(1.005, n=15, seed=1))]
    assert judge(*arms) == judge(*arms)


@pytest.mark.parametrize("width", [40, 64, 80, 100, 140])
def test_the_table_fits_its_console_best_first(width):
    c = judge(arm("adamw-warmup_cosine", noisy(1)), arm("sgd", noisy(2, seed=1)))
    console = Console(width=width, file=io.StringIO())
    console.print(comparison_table(c, width))
    text = console.file.getvalue()
    assert max(map(len, text.splitlines())) <= width
    assert text.index("best") < text.index("worse")
    assert ("lr 0.003" in text) == (width >= 100)
    assert ("interval" in text) == (width >= 64)


@pytest.mark.parametrize(
    ("value", "uncertainty", "text"),
    [(0.95312, 0.0034, "0.9531"), (1234.5, 20.0, "1234"), (3e-9, 1e-10, "3e-09"),
     (0.5, 0.0, "0.5"), (12.3456, None, "12.35")],
)  # fmt: skip
def test_numbers_have_the_digits_that_their_uncertainty_supports(value, uncertainty, text):
    assert wording.number(value, uncertainty) == text


def curve(lr, **more):
    points = [(10**x, 2.0 - 0.1 * k) for k, x in enumerate(np.linspace(-5, -1, 9))]
    fields = {"suggested_lr": lr, "low": lr, "high": lr, "diverges_at": 0.1, **more}
    return LrCurve(points=[*points, (0.3, float("inf")), (1.0, float("nan"))], **fields)


@pytest.mark.parametrize("width", [20, 60, 100])
def test_curves_in_characters(width):
    text = lr_curve_text({"adamw": curve(1e-3), "sgd": curve(None)}, width, 15)
    assert "adamw" in text
    assert "sgd" in text
    assert "1e-3" in text
    assert "\x1b" not in text
    assert max(map(len, text.splitlines()[2:])) <= max(width, 40)


def test_a_curve_without_a_finite_loss_says_so():
    empty = LrCurve(points=[(1e-3, float("nan"))], suggested_lr=None, low=None, high=None,
                    diverges_at=None)  # fmt: skip
    assert "no finite loss" in lr_curve_text({"sgd": empty}, 60, 15)
