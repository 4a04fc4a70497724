"""The figures of a study's report, each with the question that it answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from tuner.compare.page import Plot, image
from tuner.compare.rows import Evaluations, chosen_runs, metric_curve
from tuner.compare.targets import Targets
from tuner.compare.verdicts import ArmResult, Comparison
from tuner.records import LrCurve, Trial

if TYPE_CHECKING:
    from tuner.compare.figures import Spent
    from tuner.compare.plots import Explored, Runs


def plots(
    trials: Sequence[Trial],
    evaluations: Evaluations,
    lr_curves: Mapping[int, LrCurve],
    comparison: Comparison,
    targets: Sequence[Targets],
) -> list[Plot]:
    """All figures, in the order of the page; brings matplotlib, which few commands need."""
    from tuner.compare import figures as more
    from tuner.compare import plots as base

    metric, direction = comparison.metric, comparison.direction
    arms = comparison.arms
    names = {t.number: t.arm for t in trials}
    by_arm = {names[n]: curve for n, curve in sorted(lr_curves.items()) if n in names}
    runs = {arm.name: _runs(trials, evaluations, arm, metric) for arm in arms}
    explored = {arm.name: _explored(trials, arm, by_arm.get(arm.name)) for arm in arms}
    spent = {arm.name: _spent(trials, arm.name) for arm in arms}
    curves = {a.name: by_arm[a.name] for a in arms if a.name in by_arm}
    made = [
        ("How good is each arm?", "Diamond: mean over fresh seeds. Bar: interval of the mean. "
         "Dots: seeds. Grey: the leader's interval.", base.arms_figure(comparison)),
        ("How far from the leader?", "Differences on common seeds, which cancels what is "
         "common to a seed. Grey: the margin.",
         base.differences_figure(comparison)),
    ]  # fmt: skip
    if len(arms) > 1:
        made.append(("Which arm wins a single run?", "Probability that one run of the row's arm "
                     "is better than one of the column's, ties half.",
                     more.wins_figure(comparison)))  # fmt: skip
    if targets:
        made.append((f"How soon does it reach {metric} {targets[0].target:.4g}?",
                     "Runs that never get there keep a curve below 1. Dashed: up to where all "
                     "arms were followed.",
                     more.targets_figure(targets, 1 - comparison.alpha)))  # fmt: skip
    made += [
        ("How did training go?", "The chosen configurations on fresh seeds, and the learning "
         "rate that really ran.", base.curves_figure(runs, metric, direction)),
        ("Where are good learning rates?", "Each dot is one exploration trial. Dashed: the "
         "search box. Coloured line: the chosen learning rate. Grey steps: best of each half "
         "decade.",
         base.exploration_figure(explored, metric, direction)),
        ("What would a smaller search have found?", "Expected best of the trials that this "
         "spending pays, with 80 % bands. Exact for independent draws; a sampler's trials are "
         "not, so read it as a guide.",
         more.spending_figure(spent, metric, direction)),
    ]  # fmt: skip
    if curves:
        made.append(("Learning-rate range tests", "Circle: suggestion. Bar: search box. Cross: "
                     "where training diverges.", base.lr_curves_figure(curves)))  # fmt: skip
    return [Plot(title, caption, image(figure)) for title, caption, figure in made]


def _runs(trials: Sequence[Trial], evaluations: Evaluations, arm: ArmResult, metric: str) -> Runs:
    from tuner.compare.plots import Runs

    lines = [
        evaluations.get(t.number, []) for t in chosen_runs(trials, arm) if t.state == "completed"
    ]
    return Runs(
        metric=[metric_curve(r, metric, "steps") for r in lines],
        lr=[[(float(e.step), e.lr) for e in r if e.lr > 0] for r in lines],
    )


def _explored(trials: Sequence[Trial], arm: ArmResult, curve: LrCurve | None) -> Explored:
    from tuner.compare.plots import Explored

    tried = [
        t
        for t in trials
        if t.arm == arm.name
        and t.stage == "explore"
        and t.state in ("completed", "diverged")
        and "lr" in t.point
    ]
    chosen = chosen_runs(trials, arm)
    return Explored(
        lrs=[t.point["lr"] for t in tried],
        values=[t.value if t.state == "completed" else None for t in tried],
        chosen_lr=next((t.point["lr"] for t in chosen if "lr" in t.point), None),
        box=(curve.low, curve.high) if curve and curve.low and curve.high else None,
    )


def _spent(trials: Sequence[Trial], arm: str) -> Spent:
    """Exploration with what it cost; a trial that stopped early counts with what it had."""
    from tuner.compare.figures import Spent

    ended = ("completed", "diverged", "pruned")
    tried = [t for t in trials if t.arm == arm and t.stage == "explore" and t.state in ended]
    return Spent(
        values=[None if t.state == "diverged" else t.value for t in tried],
        steps=[float(t.steps) for t in tried],
        seconds=[t.wall_seconds for t in tried],
    )
