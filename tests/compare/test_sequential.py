"""Looking several times: Pocock's constants, who needs more seeds, and a verdict that stays."""

import numpy as np
import pytest
from scipy.special import ndtri

from tuner.compare.evidence import gather
from tuner.compare.looks import nominal_level, overall_p
from tuner.compare.sequential import undecided
from tuner.compare.verdicts import ArmScores, compare

# Jennison and Turnbull, Group Sequential Methods, 2000, table 2.1: C_P(K, 0.05).
POCOCK = {1: 1.960, 2: 2.178, 3: 2.289, 4: 2.361, 5: 2.413, 8: 2.512, 10: 2.555}


def rng():
    return np.random.default_rng(0)


def scores(*means, n=8, sd=0.01, seed=0, names="abcdef"):
    noise = np.random.default_rng(seed).standard_normal((len(means), n))
    return {
        name: {s: float(m + sd * x) for s, x in enumerate(row)}
        for name, m, row in zip(names, means, noise, strict=False)
    }


def need(data, look=1, looks=4, direction="minimize", **options):
    return undecided(data, direction, look=look, looks=looks, rng=rng(), **options)


@pytest.mark.parametrize(("looks", "constant"), POCOCK.items())
def test_pococks_constants(looks, constant):
    level = nominal_level(looks)
    assert -ndtri(level / 2) == pytest.approx(constant, abs=1.5e-3)
    assert overall_p(level, looks) == pytest.approx(0.05)


def test_the_price_of_looking_is_between_none_and_bonferroni():
    p = np.array([[0.0, 1e-15, 1e-6], [0.01, 0.3, 1.0]])
    paid = overall_p(p, 4)
    assert (paid >= p).all()
    assert (paid <= np.minimum(1, 4 * p) + 1e-12).all()
    assert overall_p(p, 1).tolist() == p.tolist()
    assert (np.diff(overall_p(np.linspace(0, 1, 500), 5)) >= 0).all()
    # Armitage, McPherson and Rowe 1969: testing five times at 5 % errs in 14.2 %.
    assert overall_p(0.05, 5) == pytest.approx(0.142, abs=0.001)
    with pytest.raises(ValueError, match="looks = 0"):
        overall_p(0.5, 0)


@pytest.mark.parametrize("direction", ["minimize", "maximize"])
def test_only_the_leader_and_its_open_rivals_need_more_seeds(direction):
    sign = 1 if direction == "minimize" else -1
    data = {n: {s: sign * v for s, v in arm.items()} for n, arm in scores(1, 1.005, 2).items()}
    assert need(data, direction=direction) == {"a", "b"}


def test_nothing_is_needed_when_one_is_best_or_all_others_are_equivalent():
    assert need(scores(1.0, 2.0, 3.0)) == frozenset()
    same = scores(1.0, n=12)
    twin = {"a": same["a"], "b": dict(same["a"])}
    assert need(twin) == frozenset()
    close = scores(1.0, 1.0, n=20, seed=3)
    assert need(close, margin=0.05) == frozenset()
    assert need(close, margin=0.001) == {"a", "b"}


def test_the_last_look_and_hopeless_data_end_it():
    close = scores(1.0, 1.0)
    assert need(close, look=4) == frozenset()
    assert need({"a": close["a"]}) == frozenset()
    assert need({"a": {1: None}, "b": {1: None}}) == frozenset()
    with pytest.raises(ValueError, match=r"allowed: 1\.\.4"):
        need(close, look=5)


def test_one_seed_decides_nothing_and_divergence_is_the_worst():
    assert need({"a": {1: 0.1}, "b": {1: 99.0}}) == {"a", "b"}
    steady = scores(1.0, 1.003, n=10)
    steady["c"] = dict.fromkeys(steady["a"])
    assert need(steady) == {"a", "b"}


def test_an_arm_that_was_dropped_stays_dropped():
    data = scores(1.0, 1.004, 1.02, n=14)
    data["c"] = {s: v for s, v in data["c"].items() if s < 7}
    assert "c" not in need(data, look=2)


def verdicts(data, looks):
    arms = [
        ArmScores(name=n, optimizer="sgd", schedule="constant", seeds=list(s), scores=[*s.values()])
        for n, s in data.items()
    ]
    return compare(arms, "minimize", rng=rng(), looks=looks)


def test_the_last_comparison_repeats_what_a_look_decided():
    # c was dropped after 8 seeds; the others went on to 20, and the level is that of 3 looks.
    data = scores(1.0, 1.004, 1.02, n=20)
    early = {name: {s: v for s, v in arm.items() if s < 8} for name, arm in data.items()}
    assert need(early, looks=3) == {"a", "b"}
    data["c"] = early["c"]
    c = verdicts(data, looks=3)
    assert {a.name: a.verdict for a in c.arms}["c"] == "worse"
    alone = gather([*early.values()], "minimize", rng=rng(), looks=3)
    dropped = next(a for a in c.arms if a.name == "c")
    assert dropped.p_value == pytest.approx(min(alone.p_worse(2), c.arms[0].p_value))
    assert c.looks == 3
    assert "3 looks" in c.method


def test_looks_make_a_verdict_harder_and_intervals_wider():
    data = scores(1.0, 1.007, n=10, seed=4)
    once, often = verdicts(data, 1), verdicts(data, 5)
    assert once.arms[0].p_value < often.arms[0].p_value
    rival = once.arms[1], often.arms[1]
    assert rival[0].difference == rival[1].difference
    assert rival[0].difference_high < rival[1].difference_high
    # Arms with different numbers of seeds were looked at as often, whatever was planned.
    data["b"] = {s: v for s, v in data["b"].items() if s < 6}
    data["c"] = {s: v + 1 for s, v in data["a"].items()}
    assert verdicts(data, 1).looks == 2
