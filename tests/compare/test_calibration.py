"""What the verdicts and intervals are worth, by simulation: error rates, power and coverage."""

import numpy as np
import pytest

from tuner.compare import statistics as st
from tuner.compare.verdicts import ArmScores, compare

STUDIES = 500
NOISE = 2 * np.sqrt(0.05 * 0.95 / STUDIES)  # two standard errors of a simulated rate of 5 %


def study(rng, arms, seeds, shift=0.0, correlation=0.0, noise="normal"):
    """Scores of one study, (arms, seeds); the first arm is better by `shift` deviations."""
    draw = {
        "normal": rng.standard_normal,
        "skewed": lambda size: rng.exponential(size=size),
        "heavy": lambda size: rng.standard_t(3, size=size) / np.sqrt(3),
    }[noise]
    own, shared = draw(size=(arms, seeds)), draw(size=seeds)
    data = np.sqrt(1 - correlation) * own + np.sqrt(correlation) * shared
    data[0] += shift
    return data


def verdicts(data, rng, counts=None):
    """Verdict of each arm, in the order of `data`."""
    counts = counts or [data.shape[1]] * len(data)
    arms = [
        ArmScores(
            name=str(k), optimizer="sgd", schedule="constant",
            seeds=list(range(n)), scores=[float(s) for s in row[:n]],
        )
        for k, (row, n) in enumerate(zip(data, counts, strict=True))
    ]  # fmt: skip
    said = {a.name: a.verdict for a in compare(arms, "maximize", rng=rng).arms}
    return [said[str(k)] for k in range(len(data))]


def any_claim(said):
    return bool({"best", "worse"} & set(said))


@pytest.mark.parametrize(
    ("arms", "seeds", "noise", "counts"),
    [
        (2, 8, "normal", None),
        (4, 8, "normal", None),
        (4, 8, "skewed", None),
        (6, 10, "heavy", None),
        (4, 3, "normal", None),
        (4, 8, "normal", [8, 8, 5, 5]),
    ],
)
def test_equal_arms_are_called_best_or_worse_in_at_most_5_percent(arms, seeds, noise, counts):
    rng = np.random.default_rng(0)
    claims = sum(
        any_claim(verdicts(study(rng, arms, seeds, noise=noise), rng, counts))
        for _ in range(STUDIES)
    )
    # The plain case is held to 5 % as counted; for the others the count has its own error.
    plain = (arms, seeds, noise, counts) == (4, 8, "normal", None)
    assert claims / STUDIES <= 0.05 + (0.0 if plain else NOISE)


def test_two_equal_leaders_above_worse_arms_are_not_told_apart():
    # Which pairs are truly equal must not matter to the error rate.
    rng = np.random.default_rng(1)
    wrong = 0
    for _ in range(STUDIES):
        data = study(rng, 4, 8)
        data[:2] += 5
        said = verdicts(data, rng)
        wrong += "best" in said or "worse" in said[:2]
    assert wrong / STUDIES <= 0.05 + NOISE


@pytest.mark.parametrize(
    ("seeds", "correlation", "at_least"), [(8, 0.0, 0.75), (8, 0.3, 0.85), (10, 0.0, 0.90)]
)
def test_a_planted_effect_of_two_deviations_is_found(seeds, correlation, at_least):
    # 0.79, 0.95 and 0.94 were measured; seeds share their data order, so a correlation above 0 is
    # the rule. Sign flips with Holm over all six pairs would find 0.22 at 8 independent seeds.
    rng = np.random.default_rng(2)
    found = sum(
        verdicts(study(rng, 4, seeds, 2.0, correlation), rng)[0] == "best" for _ in range(400)
    )
    assert found / 400 >= at_least


def test_an_arm_that_is_worse_by_two_deviations_is_found():
    rng = np.random.default_rng(3)
    found = sum(verdicts(study(rng, 4, 8, -2.0), rng)[0] == "worse" for _ in range(400))
    assert found / 400 >= 0.80


def coverage(interval, draw, mean, repetitions=2_000):
    inside = 0
    for _ in range(repetitions):
        low, high, _ = interval(draw())
        inside += low <= mean <= high
    return inside / repetitions


@pytest.mark.parametrize("n", [5, 8, 20])
def test_student_intervals_of_means_and_differences_cover(n):
    rng = np.random.default_rng(4)
    assert 0.93 <= coverage(st.t_interval, lambda: rng.normal(3, 2, n), 3) <= 0.97
    paired = coverage(st.t_interval, lambda: -np.diff(study(rng, 2, n, 1.0, 0.5), axis=0)[0], 1)
    assert 0.93 <= paired <= 0.97


def test_bca_intervals_cover_where_they_are_offered():
    rng = np.random.default_rng(5)
    bca = coverage(
        lambda v: st.bca_interval(v, rng, resamples=499), lambda: rng.normal(0, 1, 30), 0, 800
    )
    assert 0.92 <= bca <= 0.97


@pytest.mark.parametrize("seeds", [3, 8])
def test_p_best_is_not_overconfident(seeds):
    # Of equal arms, 5 % should look better than 97.5 % sure, whatever the number of seeds.
    rng = np.random.default_rng(6)
    sure = [
        st.p_best(st.quality_draws(study(rng, 2, seeds), rng, draws=1_000)).max() > 0.975
        for _ in range(1_000)
    ]
    assert np.mean(sure) <= 0.07
