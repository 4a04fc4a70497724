"""From a study's trials and evaluations to what the comparison's parts take."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tuner.compare.batches import Tried
from tuner.compare.targets import (
    COSTS,
    Cost,
    Run,
    Targets,
    cost_of,
    median_target,
    time_to_target,
)
from tuner.compare.verdicts import ArmResult, Comparison
from tuner.records import Evaluation, Trial

Evaluations = Mapping[int, Sequence[Evaluation]]  # by trial number


def chosen_runs(trials: Sequence[Trial], arm: ArmResult) -> list[Trial]:
    """The runs whose scores judge the arm."""
    return [
        t
        for t in trials
        if t.stage in ("confirm", "decide")
        and t.arm == arm.name
        and t.seed in arm.seeds
        and t.params == arm.params
    ]


def metric_curve(
    evaluations: Sequence[Evaluation], metric: str, cost: Cost
) -> list[tuple[float, float]]:
    """(cost, metric) at each evaluation that has the metric."""
    return [(cost_of(e, cost), e.metrics[metric]) for e in evaluations if metric in e.metrics]


def first_arm(trials: Sequence[Trial], comparison: Comparison) -> str:
    """The study's first arm that has a score: the baseline unless another is named."""
    judged = {a.name for a in comparison.arms}
    return next((t.arm for t in trials if t.arm in judged), comparison.arms[0].name)


def reached_targets(
    trials: Sequence[Trial],
    evaluations: Evaluations,
    comparison: Comparison,
    *,
    baseline: str | None = None,
    target: float | None = None,
    costs: Sequence[Cost] = COSTS,
) -> list[Targets]:
    """Time to target on each cost axis, from the judged runs.

    Without a target it is the median of the baseline's judged scores.
    Raises ValueError when the baseline has no median or no run, or nothing was evaluated.
    """
    reference = baseline or first_arm(trials, comparison)
    scores = {a.name: a.scores for a in comparison.arms}
    if reference not in scores:
        raise ValueError(f"baseline {reference!r}: allowed: {', '.join(scores)}")
    goal = median_target(scores[reference], comparison.direction) if target is None else target
    found = []
    for cost in costs:
        runs = {
            arm.name: [
                Run(
                    t.seed,
                    metric_curve(evaluations.get(t.number, ()), comparison.metric, cost)
                    if t.state == "completed"
                    else (),
                )
                for t in chosen_runs(trials, arm)
            ]
            for arm in comparison.arms
        }
        found.append(
            time_to_target(
                runs,
                goal,
                comparison.direction,
                baseline=reference,
                cost=cost,
                level=1 - comparison.alpha,
            )
        )
    return found


def tried_batches(
    trials: Sequence[Trial], evaluations: Evaluations, arm: str, metric: str
) -> list[Tried]:
    """The full-length exploration trials of an arm, those that stopped early left out."""
    return [
        Tried(
            int(t.params["batch_size"]),
            t.value if t.state == "completed" else None,
            [
                (float(e.examples), e.seconds, e.metrics[metric])
                for e in evaluations.get(t.number, ())
                if metric in e.metrics
            ],
        )
        for t in trials
        if t.arm == arm and t.stage == "explore" and t.state in ("completed", "diverged")
    ]


def confirmed_batches(trials: Sequence[Trial], arm: str) -> dict[int, list[float]]:
    """Scores of confirmation by batch size; those of the decide stage belong to one size only."""
    found: dict[int, list[float]] = {}
    for t in trials:
        if t.arm == arm and t.stage == "confirm" and t.state == "completed" and t.value is not None:
            found.setdefault(int(t.params["batch_size"]), []).append(t.value)
    return found


def late_best(trials: Sequence[Trial], evaluations: Evaluations, comparison: Comparison) -> float:
    """Share of the leader's judged runs whose best evaluation lies in their last quarter."""
    sign = 1.0 if comparison.direction == "minimize" else -1.0
    late = []
    for t in chosen_runs(trials, comparison.arms[0]):
        curve = metric_curve(evaluations.get(t.number, ()), comparison.metric, "steps")
        if len(curve) >= 4:
            best = min(curve, key=lambda point: sign * point[1])[0]
            late.append(best > 0.75 * curve[-1][0])
    return sum(late) / len(late) if late else 0.0
