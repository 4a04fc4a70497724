"""Several studies together: the arms that all of them have, judged over their tasks.

Tasks differ in metric and scale, so scores are normalised within each task: seed deviations (of
that task) from the task's best arm, 0 = as good as the best mean, negative = worse. The verdicts
come from the same tests as for one study, on the normalised scores of all tasks' seeds, so they
speak about the average over THESE tasks. Beside them stand the field's summaries: mean rank,
interquartile mean, P(A > B), and AlgoPerf's performance profile and score of time to target.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from tuner.compare import profiles
from tuner.compare import statistics as st
from tuner.compare.evidence import pooled_sd, score_matrix
from tuner.compare.targets import Cost, Targets
from tuner.compare.verdicts import ArmScores, Verdict, compare
from tuner.records import Direction, Record

_SEEDS = 1_000_000  # seeds of different tasks never meet


class TaskScores(NamedTuple):
    """One study: its pooled arms in the order of their labels, and their time to target."""

    study: str
    task: str
    metric: str
    direction: Direction
    arms: Sequence[ArmScores]  # named by label, the same labels in every study
    targets: Targets | None  # on the pool's cost axis


class PooledArm(Record):
    """One arm over all tasks. Scores are normalised: seed deviations from each task's best arm.

    Attributes:
        means: of each task, in metric units. ranks: 1 = best, ties share.
        iqm, iqm_low, iqm_high: interquartile mean over runs and tasks.
        times: median time to target of each task; None = missed.
        score: AlgoPerf's B, 0 to 1. speedup: geometric mean over the baseline.
    """

    name: str
    verdict: Verdict
    p_value: float | None
    means: list[float]
    ranks: list[float]
    mean_rank: float
    normalised: float
    iqm: float
    iqm_low: float | None
    iqm_high: float | None
    p_best: float
    times: list[float | None]
    score: float | None
    speedup: float | None


class PairWins(Record):
    """P(A > B) for one run of each on a random one of these tasks."""

    arm: str
    other: str
    p: float
    low: float | None
    high: float | None


class Pooled(Record):
    """The comparison over several studies, best arm first.

    Attributes:
        left_out: arms that not every study has. profile: arm -> share of tasks within each tau of
            the fastest. targets: the target of each task.
    """

    studies: list[str]
    tasks: list[str]
    metrics: list[str]
    alpha: float
    cost: Cost
    baseline: str
    arms: list[PooledArm]
    wins: list[PairWins]
    taus: list[float]
    profile: dict[str, list[float]]
    targets: list[float | None]
    left_out: list[str]
    method: str
    answer: str


def _normalised(task: TaskScores) -> list[list[float]]:
    """Scores of each arm in seed deviations from the best arm's mean; more is better."""
    matrix = score_matrix(
        [dict(zip(a.seeds, a.scores, strict=True)) for a in task.arms], task.direction
    )
    scale = pooled_sd(matrix) or float(np.nanmax(matrix) - np.nanmin(matrix)) or 1.0
    best = np.nanmax(np.nanmean(matrix, axis=1))
    columns = {s: c for c, s in enumerate(sorted({s for a in task.arms for s in a.seeds}))}
    return [
        [float((matrix[k, columns[s]] - best) / scale) for s in arm.seeds]
        for k, arm in enumerate(task.arms)
    ]


def _joined(tasks: Sequence[TaskScores], normal: Sequence[list[list[float]]]) -> list[ArmScores]:
    """One arm over all tasks: normalised scores, seeds made distinct by task."""
    return [
        tasks[0]
        .arms[k]
        .model_copy(
            update={
                "seeds": [
                    t * _SEEDS + s for t, task in enumerate(tasks) for s in task.arms[k].seeds
                ],
                "scores": [x for scores in normal for x in scores[k]],
                "explored_values": [],
                "confirmed": {},
                "explored": None,
                "flags": sorted({flag for task in tasks for flag in task.arms[k].flags}),
            }
        )
        for k in range(len(tasks[0].arms))
    ]


def _times(tasks: Sequence[TaskScores], names: Sequence[str]) -> st.Array:
    """Median time to target, (arms, tasks); infinite = missed, NaN = the task has no target."""
    times = np.full((len(names), len(tasks)), np.nan)
    for column, task in enumerate(tasks):
        if task.targets is None:
            continue
        found = {a.name: a.median for a in task.targets.arms}
        times[:, column] = [
            math.inf if (median := found.get(name)) is None else median for name in names
        ]
    return times


def pool(
    tasks: Sequence[TaskScores],
    *,
    rng: np.random.Generator,
    baseline: str,
    cost: Cost,
    alpha: float = 0.05,
    looks: int = 1,
    left_out: Sequence[str] = (),
) -> Pooled:
    """Compare arms over several tasks; every task must have the same two or more arms, in order.

    `looks` is the largest number of looks that any of the studies planned.
    Raises ValueError for NaN or infinite scores, or fewer than two arms.
    """
    from scipy.stats import rankdata

    names = [a.name for a in tasks[0].arms]
    if len(names) < 2 or any([a.name for a in t.arms] != names for t in tasks):
        raise ValueError("every task needs the same arms, at least two")
    normal = [_normalised(task) for task in tasks]
    together = compare(_joined(tasks, normal), "maximize", rng=rng, alpha=alpha, looks=looks)
    verdicts = {arm.name: arm for arm in together.arms}
    ranks = np.array([rankdata([-np.mean(x) for x in scores]) for scores in normal]).T
    times = _times(tasks, names)
    timed = times[:, ~np.isnan(times).all(axis=0)]
    ratios = profiles.performance_ratios(timed) if timed.size else np.empty((len(names), 0))
    scored = profiles.benchmark_score(ratios) if timed.size else None
    speedups = (
        profiles.geometric_speedup(timed, names.index(baseline)) if timed.size else [math.nan] * 99
    )
    taus = [float(x) for x in np.linspace(1, profiles.R_MAX, 61)] if timed.size else []
    profile = profiles.performance_profile(ratios, taus) if timed.size else None
    arms = []
    for arm in together.arms:
        k = names.index(arm.name)
        mine = [scores[k] for scores in normal]
        value, interval = profiles.iqm_interval(mine, rng, 1 - alpha)
        means = [
            (-1.0 if t.direction == "minimize" else 1.0) * float(np.mean(row))
            for t in tasks
            for row in [_oriented(t, k)]
        ]
        speedup = float(speedups[k])
        arms.append(
            PooledArm(
                name=arm.name,
                verdict=arm.verdict,
                p_value=arm.p_value,
                means=means,
                ranks=[float(r) for r in ranks[k]],
                mean_rank=float(ranks[k].mean()),
                normalised=float(np.mean([np.mean(x) for x in mine])),
                iqm=value,
                iqm_low=interval.low if interval else None,
                iqm_high=interval.high if interval else None,
                p_best=verdicts[arm.name].p_best,
                times=[None if not math.isfinite(x) else float(x) for x in times[k]],
                score=None if scored is None else float(scored[k]),
                speedup=speedup if math.isfinite(speedup) else None,
            )
        )
    pooled = Pooled(
        studies=[t.study for t in tasks],
        tasks=[t.task for t in tasks],
        metrics=[t.metric for t in tasks],
        alpha=alpha,
        cost=cost,
        baseline=baseline,
        arms=arms,
        wins=_wins([a.name for a in arms], names, normal, alpha),
        taus=taus,
        profile={}
        if profile is None
        else {n: [float(x) for x in profile[k]] for k, n in enumerate(names)},
        targets=[None if t.targets is None else t.targets.target for t in tasks],
        left_out=list(left_out),
        method=together.method,
        answer="",
    )
    return pooled.model_copy(update={"answer": answer(pooled)})


def _oriented(task: TaskScores, k: int) -> list[float]:
    """An arm's scores, more is better, diverged ones as the task's worst."""
    matrix = score_matrix(
        [dict(zip(a.seeds, a.scores, strict=True)) for a in task.arms], task.direction
    )
    return [float(x) for x in matrix[k] if math.isfinite(x)]


def _wins(
    order: Sequence[str], names: Sequence[str], normal: Sequence[list[list[float]]], alpha: float
) -> list[PairWins]:
    wins = []
    for first in order:
        for second in order:
            if first != second:
                a, b = names.index(first), names.index(second)
                p, interval = profiles.improvement(
                    [s[a] for s in normal], [s[b] for s in normal], 1 - alpha
                )
                wins.append(
                    PairWins(
                        arm=first,
                        other=second,
                        p=p,
                        low=interval.low if interval else None,
                        high=interval.high if interval else None,
                    )
                )
    return wins


def answer(pooled: Pooled) -> str:
    """The result over all tasks in a few plain sentences."""
    leader, *others = pooled.arms
    tasks = len(set(pooled.tasks))
    over = f"{len(pooled.studies)} studies of {tasks} task{'s' if tasks > 1 else ''}"
    head = f"{leader.name} is best" if leader.verdict == "best" else f"{leader.name} leads"
    doubt = "" if leader.verdict == "best" else "No arm is best beyond doubt. "
    parts = [
        f"{doubt}Over {over}, {head}: mean rank {leader.mean_rank:.2g} of {len(pooled.arms)}, "
        f"interquartile mean {leader.iqm:.2f} seed deviations from each task's best arm."
    ]
    worse = [a for a in others if a.verdict == "worse"]
    if worse:
        told = ", ".join(f"{a.name} (by {leader.normalised - a.normalised:.2g})" for a in worse)
        parts.append(f"Worse on average, in seed deviations: {told}.")
    close = [a.name for a in others if a.verdict not in ("worse",)]
    if close:
        parts.append(f"Not told apart from it or not judged: {', '.join(close)}.")
    losing = [
        f"{pooled.studies[t]} ({best.name})"
        for t in range(len(pooled.studies))
        for best in [min(pooled.arms, key=lambda a: a.ranks[t])]
        if best.name != leader.name
    ]
    if losing:
        parts.append(f"Another arm has the best mean in {', '.join(losing)}.")
    if pooled.left_out:
        parts.append(f"Left out, since not every study has them: {', '.join(pooled.left_out)}.")
    parts.append(
        f"This speaks about {'this task' if tasks == 1 else f'these {tasks} tasks'} only"
        + (", repeated" if tasks == 1 else "")
        + "; other tasks can order the arms otherwise."
    )
    return " ".join(parts)
