"""Several studies together, on tasks with planted truths."""

import numpy as np
import pytest

from tuner.compare.figures import pooled_figure, profile_figure
from tuner.compare.pooled import TaskScores, pool
from tuner.compare.pooled_report import write_pooled_report
from tuner.compare.targets import Run, time_to_target
from tuner.compare.verdicts import ArmScores

SEEDS = 8


def task(name, means, scale=1.0, direction="maximize", seed=0, times=None, seeds=SEEDS, **options):
    """One study: arm a, b, ... has its mean in units of `scale`; the seed deviation is `scale`."""
    noise = np.random.default_rng(seed)
    sign = 1 if direction == "maximize" else -1
    arms = [
        ArmScores(
            name=arm, optimizer="sgd", schedule="cosine", seeds=list(range(seeds)),
            scores=[float(sign * scale * x) for x in m + noise.standard_normal(seeds)], **options,
        )
        for arm, m in zip("abcdef", means, strict=False)
    ]  # fmt: skip
    targets = None
    if times is not None:
        runs = {
            arm: [Run(s, [(t, 0.0), (100.0, 0.0)] if t else [(100.0, 1.0)]) for s in range(SEEDS)]
            for arm, t in zip("abcdef", times, strict=False)
        }
        targets = time_to_target(runs, 0.5, "minimize", baseline="a", cost="steps")
    return TaskScores(name, f"tasks:{name}", "acc", direction, arms, targets)


def together(*tasks, **options):
    found = pool(tasks, rng=np.random.default_rng(0), baseline="a", cost="steps", **options)
    return found, {arm.name: arm for arm in found.arms}


def test_an_arm_that_is_better_on_every_task_is_best_whatever_their_scales():
    found, arms = together(
        task("x", [3, 0, 0.5], scale=1e-3),
        task("y", [3, 0.5, 0], scale=1e4, direction="minimize", seed=1),
        task("z", [3, 0, 0], seed=2),
    )
    assert found.arms[0].name == "a"
    assert {n: a.verdict for n, a in arms.items()} == {"a": "best", "b": "worse", "c": "worse"}
    assert arms["a"].ranks == [1, 1, 1]
    assert -0.5 < arms["a"].iqm < 0.5
    assert arms["b"].iqm_low < arms["b"].iqm < arms["b"].iqm_high < -1
    assert "Over 3 studies of 3 tasks, a is best" in found.answer
    win = next(w for w in found.wins if (w.arm, w.other) == ("a", "b"))
    assert win.p > 0.9
    assert win.low > 0.5


def test_an_arm_that_wins_a_little_often_and_loses_much_once():
    found, arms = together(
        task("x", [0.5, 0]), task("y", [0.5, 0], seed=1), task("z", [-9, 0], seed=2)
    )
    assert found.arms[0].name == "b"
    assert "Another arm has the best mean in" in found.answer
    assert arms["a"].mean_rank < 2


def test_profiles_scores_and_speedups():
    found, arms = together(
        task("x", [1, 1, 1], times=[40, 20, 80]),
        task("y", [1, 1, 1], times=[40, 40, None]),
        task("w", [1, 1, 1]),  # without a target
    )
    assert arms["b"].times == [20, 40, None]
    assert arms["b"].score == 1
    assert arms["a"].score == pytest.approx((2 / 3 + 1) / 2)
    assert arms["c"].score == 0
    assert arms["b"].speedup == pytest.approx(np.sqrt(2))
    assert arms["a"].speedup == 1
    assert found.profile["a"][0] == 0.5
    assert found.profile["a"][-1] == 1
    assert found.targets == [0.5, 0.5, None]


def test_equal_arms_over_tasks_are_told_apart_in_at_most_5_percent():
    wrong = 0
    for k in range(100):
        tasks = [task(n, [0, 0, 0], seed=(k, i), seeds=4) for i, n in enumerate("xyz")]
        found = pool(tasks, rng=np.random.default_rng(k), baseline="a", cost="steps")
        wrong += any(a.verdict in ("best", "worse") for a in found.arms)
    assert wrong / 100 <= 0.05 + 2 * np.sqrt(0.05 * 0.95 / 100)


def test_flags_and_divergence_of_any_task_count():
    _, arms = together(task("x", [3, 0]), task("y", [3, 0], seed=1, flags=["at-bound-lr"]))
    assert arms["b"].verdict == "under-explored"
    broken = task("x", [0, 0])
    broken.arms[1].scores[:6] = [None] * 6
    found, arms = together(broken, task("y", [0, 0], seed=1))
    assert found.arms[0].name == "a"
    assert arms["b"].normalised < -1


def test_the_same_task_twice_is_not_two_tasks():
    x = task("x", [1, 0])
    found, _ = together(x, x._replace(study="again"))
    assert "2 studies of 1 task" in found.answer
    assert "this task only, repeated" in found.answer
    with pytest.raises(ValueError, match="same arms"):
        together(task("x", [1]), task("y", [1]))


def test_the_pooled_report_and_its_figures(tmp_path):
    timed = task("x", [1, 0], times=[40, 20]), task("<y>", [1, 0], times=[40, None])
    found, _ = together(*timed, left_out=["sgd"])
    page = write_pooled_report(tmp_path / "sub" / "p.html", found).read_text()
    assert "<script" not in page
    assert "<y>" not in page
    assert "Left out, since not every study has them: sgd." in page
    assert page.count("data:image/svg+xml") == 2
    assert "http" not in page.replace("data:image/svg+xml", "").split("base64")[0]
    bare, _ = together(task("x", [1, 0]))
    assert "no task has a target" in profile_figure(bare).axes[0].texts[0].get_text()
    assert len(pooled_figure(bare).axes[0].get_yticklabels()) == 2
