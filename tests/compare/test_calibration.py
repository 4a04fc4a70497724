"""What the verdicts and intervals are worth, by simulation: error rates, power and coverage."""

import numpy as np
import pytest

from tuner.compare import statistics as st
from tuner.compare.evidence import gather
from tuner.compare.sequential import undecided
from tuner.compare.verdicts import ArmScores, compare

STUDIES = 1_000
NOISE = 2 * np.sqrt(0.05 * 0.95 / STUDIES)  # two standard errors of a simulated rate of 5 %
UNEQUAL = np.array([1.0, 3.0, 0.3, 1.0, 2.0, 0.5])  # deviations of the arms
DRAWS = {
    "normal": lambda rng, shape: rng.standard_normal(shape),
    "unequal": lambda rng, shape: rng.standard_normal(shape) * UNEQUAL[: shape[0], None],
    "skewed": lambda rng, shape: rng.exponential(size=shape),
    "heavy": lambda rng, shape: rng.standard_t(3, size=shape) / np.sqrt(3),
    "ties": lambda rng, shape: np.round(rng.standard_normal(shape)),
    "diverging": lambda rng, shape: np.where(
        rng.random(shape) < 0.1, np.nan, rng.standard_normal(shape)
    ),
}
# Looks of the presets quick, standard and thorough: seeds of each arm at each look.
PRESETS = {"quick": (5, 10, 15), "standard": (5, 10, 15, 20), "thorough": (8, 15, 23, 30)}


def study(rng, arms, seeds, shift=0.0, correlation=0.0, noise="normal"):
    """Scores of one study, (arms, seeds), NaN = diverged; the first arm is better by `shift`."""
    own, shared = DRAWS[noise](rng, (arms, seeds)), rng.standard_normal(seeds)
    data = np.sqrt(1 - correlation) * own + np.sqrt(correlation) * shared
    data[0] += shift
    return data


def told(row, n, first=0):
    """An arm's scores by seed, None where it diverged."""
    return {s: None if np.isnan(row[s]) else float(row[s]) for s in range(first, n)}


def conclusion(scores, looks=1):
    """(who is best or None, who is worse) by index of the arm."""
    e = gather(scores, "maximize", rng=np.random.default_rng(5), looks=looks)
    worse = {k for k in e.order if e.is_worse(k)}
    return (e.leader if e.leader_is_best else None), worse


def once(data, counts=None):
    """The conclusion of a study that is looked at once."""
    counts = counts or [data.shape[1]] * len(data)
    return conclusion([told(row, n) for row, n in zip(data, counts, strict=True)])


def in_looks(data, plan):
    """The conclusion of a study whose undecided arms get more seeds, and the seeds it used."""
    scores = {str(k): {} for k in range(len(data))}
    running, before = set(scores), 0
    for look, n in enumerate(plan, 1):
        for k in running:
            scores[k] |= told(data[int(k)], n, before)
        before = n
        rng = np.random.default_rng(5)
        running = undecided(scores, "maximize", look=look, looks=len(plan), rng=rng)
        if not running:
            break
    return conclusion([*scores.values()], len(plan)), sum(map(len, scores.values()))


def claims(result):
    best, worse = result
    return best is not None or bool(worse)


@pytest.mark.parametrize(
    ("arms", "seeds", "noise", "counts"),
    [
        (2, 8, "normal", None),
        (4, 8, "normal", None),
        (4, 8, "skewed", None),
        (4, 8, "unequal", None),
        (4, 8, "ties", None),
        (4, 8, "diverging", None),
        (6, 10, "heavy", None),
        (4, 3, "normal", None),
        (4, 8, "normal", [8, 8, 5, 5]),
    ],
)
def test_equal_arms_are_called_best_or_worse_in_at_most_5_percent(arms, seeds, noise, counts):
    rng = np.random.default_rng(0)
    # The plain case is held to 5 % as counted; for the others the count has its own error.
    plain = (arms, seeds, noise, counts) == (4, 8, "normal", None)
    wrong = sum(claims(once(study(rng, arms, seeds, noise=noise), counts)) for _ in range(STUDIES))
    assert wrong / STUDIES <= 0.05 + (0.0 if plain else NOISE)


@pytest.mark.parametrize(
    ("plan", "noise"),
    [
        ((4, 8, 12), "normal"),
        ((4, 8, 12), "unequal"),
        ((4, 8, 12), "diverging"),
        ((3, 6, 12), "heavy"),  # looks that are not equally spaced
    ],
)
def test_looking_several_times_keeps_the_error_at_5_percent(plan, noise):
    rng = np.random.default_rng(1)
    studies = STUDIES // 2
    wrong = sum(
        claims(in_looks(study(rng, 4, plan[-1], noise=noise), plan)[0]) for _ in range(studies)
    )
    assert wrong / studies <= 0.05 + NOISE


@pytest.mark.slow
@pytest.mark.parametrize("noise", DRAWS)
@pytest.mark.parametrize("preset", PRESETS)
def test_the_presets_keep_the_error_at_5_percent(preset, noise):
    rng, plan = np.random.default_rng(2), PRESETS[preset]
    studies = STUDIES // 2
    wrong = sum(
        claims(in_looks(study(rng, 4, plan[-1], noise=noise), plan)[0]) for _ in range(studies)
    )
    assert wrong / studies <= 0.05 + NOISE


def test_the_verdicts_are_the_conclusion():
    rng = np.random.default_rng(3)
    for shift in (0.0, 1.0, 2.0, 3.0):
        data = study(rng, 4, 8, shift)
        arms = [
            ArmScores(name=str(k), optimizer="sgd", schedule="constant",
                      seeds=list(range(8)), scores=[*told(row, 8).values()])
            for k, row in enumerate(data)
        ]  # fmt: skip
        verdicts = {a.name: a.verdict for a in compare(arms, "maximize", rng=rng).arms}
        best, worse = once(data)
        assert {int(n) for n, v in verdicts.items() if v == "best"} == ({best} - {None})
        assert {int(n) for n, v in verdicts.items() if v == "worse"} == worse


def test_two_equal_leaders_above_worse_arms_are_not_told_apart():
    # Which pairs are truly equal must not matter to the error rate.
    rng = np.random.default_rng(1)
    wrong = 0
    for _ in range(STUDIES):
        data = study(rng, 4, 8)
        data[:2] += 5
        best, worse = once(data)
        wrong += best is not None or bool(worse & {0, 1})
    assert wrong / STUDIES <= 0.05 + NOISE


@pytest.mark.parametrize(
    ("seeds", "correlation", "at_least"), [(8, 0.0, 0.75), (8, 0.3, 0.85), (10, 0.0, 0.90)]
)
def test_a_planted_effect_of_two_deviations_is_found(seeds, correlation, at_least):
    # 0.79, 0.95 and 0.94 were measured; seeds share their data order, so a correlation above 0 is
    # the rule. Sign flips with Holm over all six pairs would find 0.22 at 8 independent seeds.
    rng = np.random.default_rng(2)
    found = sum(once(study(rng, 4, seeds, 2.0, correlation))[0] == 0 for _ in range(400))
    assert found / 400 >= at_least


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_finds_two_deviations_and_saves_seeds(preset):
    rng, plan = np.random.default_rng(4), PRESETS[preset]
    results = [in_looks(study(rng, 4, plan[-1], 2.0), plan) for _ in range(60)]
    assert np.mean([best == 0 for (best, _), _ in results]) >= 0.90
    assert np.mean([used for _, used in results]) <= 0.8 * 4 * plan[-1]


def test_an_arm_that_is_worse_by_two_deviations_is_found():
    rng = np.random.default_rng(3)
    assert sum(0 in once(study(rng, 4, 8, -2.0))[1] for _ in range(400)) / 400 >= 0.80


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
    assert 0.86 <= coverage(st.t_interval, lambda: rng.exponential(size=n), 1) <= 0.94


@pytest.mark.parametrize(("n", "repetitions"), [(6, 1_000), (10, 1_000), (20, 500)])
def test_sign_flip_intervals_cover_also_with_heavy_tails(n, repetitions):
    rng = np.random.default_rng(6)

    def interval(values):
        return st.sign_flip_interval(values, rng)

    assert 0.93 <= coverage(interval, lambda: rng.normal(1, 2, n), 1, repetitions) <= 0.98
    assert 0.93 <= coverage(interval, lambda: rng.standard_t(2, n), 0, repetitions) <= 0.98


def test_bca_intervals_cover_where_they_are_offered():
    rng = np.random.default_rng(5)
    bca = coverage(
        lambda v: st.bca_interval(v, rng, resamples=999), lambda: rng.normal(0, 1, 30), 0, 1_000
    )
    assert 0.93 <= bca <= 0.97


@pytest.mark.parametrize("seeds", [3, 8])
def test_p_best_is_not_overconfident(seeds):
    # Of equal arms, 5 % should look better than 97.5 % sure, whatever the number of seeds.
    rng = np.random.default_rng(6)
    sure = [
        st.p_best(st.quality_draws(study(rng, 2, seeds), rng, draws=1_000)).max() > 0.975
        for _ in range(1_000)
    ]
    assert np.mean(sure) <= 0.07
