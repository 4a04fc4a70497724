"""What the studies of a store show beyond one verdict: targets, one factor, several studies.

Reads rows, calls the pure functions of `tuner.compare`, and writes nothing.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cached_property
from itertools import combinations
from typing import Literal, NamedTuple

import numpy as np

from tuner.answer import compare_study
from tuner.compare.batches import BatchArm, BatchRow, across_arms, batch_arm
from tuner.compare.marginal import Cell, Marginal, marginalise
from tuner.compare.pooled import Pooled, TaskScores, pool
from tuner.compare.rows import (
    chosen_runs,
    confirmed_batches,
    reached_targets,
    tried_batches,
)
from tuner.compare.targets import Cost, Targets
from tuner.compare.verdicts import ArmResult, ArmScores, Comparison
from tuner.errors import UsageError
from tuner.records import Evaluation, LrCurve, Trial
from tuner.spec import ArmSection, StudySpec
from tuner.store.base import Store

Factor = Literal["schedule", "optimizer", "batch_size", "clip"]
FACTORS: tuple[Factor, ...] = ("schedule", "optimizer", "batch_size", "clip")


class Rows:
    """The rows of one study that a comparison needs; evaluations are read once asked for."""

    def __init__(self, name: str, store: Store) -> None:
        """Raises UsageError: there is no such study, or it is a range test."""
        study = store.get_study(name)
        self.name = name
        self.spec = StudySpec.of(study)
        self.trials: list[Trial] = store.trials(name)
        self.curves: Mapping[int, LrCurve] = store.lr_curves(name)
        self._store = store

    @cached_property
    def comparison(self) -> Comparison:
        """Raises NoCompletedTrialError: there is nothing to judge by yet."""
        return compare_study(self.spec, self.trials, self.curves)

    def evaluations(self, trials: Sequence[Trial]) -> dict[int, list[Evaluation]]:
        """The evaluations of these trials by number."""
        return {t.number: self._store.evaluations(self.name, t.number) for t in trials}

    @cached_property
    def judged(self) -> dict[int, list[Evaluation]]:
        """The evaluations of the runs that judge the arms."""
        runs = [t for arm in self.comparison.arms for t in chosen_runs(self.trials, arm)]
        return self.evaluations(runs)

    def chosen(self, name: str | None = None) -> tuple[ArmResult, Trial]:
        """An arm, by default the leader, and one of the runs that judge its settings.

        Raises:
            NoCompletedTrialError: there is nothing to judge by yet.
            UsageError: no arm of that name was judged.
        """
        runs = {a.name: (a, chosen_runs(self.trials, a)) for a in self.comparison.arms}
        judged = {key: (arm, own) for key, (arm, own) in runs.items() if own}
        if name is not None and name not in judged:
            allowed = ", ".join(judged)
            raise UsageError(f"{self.name}: no arm {name!r} was judged; allowed: {allowed}")
        arm, own = judged[name] if name is not None else next(iter(judged.values()))
        return arm, max(own, key=lambda trial: trial.steps)

    @property
    def baseline(self) -> str:
        """The study file's first arm that was judged."""
        judged = {a.name for a in self.comparison.arms}
        return next((a.name for a in self.spec.arms if a.name in judged), "")

    def targets(
        self, baseline: str | None, target: float | None, costs: Sequence[Cost]
    ) -> list[Targets]:
        """Time to target; raises UsageError for an unknown baseline or one without a median."""
        if target is not None and not math.isfinite(target):
            raise UsageError(f"{self.name}: target {target}: allowed: a finite number")
        try:
            return reached_targets(
                self.trials,
                self.judged,
                self.comparison,
                baseline=baseline or self.baseline,
                target=target,
                costs=costs,
            )
        except ValueError as error:
            raise UsageError(f"{self.name}: {error}") from None


class Batches(NamedTuple):
    """The batch sizes of every arm, and the arms side by side at each size."""

    arms: list[BatchArm]
    rows: list[BatchRow]


def by_factor(rows: Rows, factor: Factor) -> Marginal | Batches:
    """What one factor does in a study: matched arms, or the batch sizes that each arm tried.

    Raises:
        NoCompletedTrialError: there is nothing to judge by yet.
    """
    spec, comparison = rows.spec, rows.comparison
    rng = np.random.default_rng(spec.study.seed)
    if factor == "batch_size":
        explored = [t for t in rows.trials if t.stage == "explore"]
        evaluations = rows.evaluations(explored)
        tried = {
            arm.name: tried_batches(explored, evaluations, arm.name, comparison.metric)
            for arm in spec.arms
        }
        return Batches(
            [
                batch_arm(
                    name, mine, confirmed_batches(rows.trials, name), comparison.direction, rng
                )
                for name, mine in tried.items()
            ],
            across_arms(tried, comparison.direction),
        )
    results = {a.name: a for a in comparison.arms}
    cells = [
        Cell(
            arm.name,
            *_placed(arm, factor),
            dict(zip(results[arm.name].seeds, results[arm.name].scores, strict=True)),
        )
        for arm in spec.arms
        if arm.name in results
    ]
    return marginalise(
        cells,
        comparison.direction,
        factor=factor,
        metric=comparison.metric,
        rng=rng,
        alpha=comparison.alpha,
    )


def _placed(arm: ArmSection, factor: Factor) -> tuple[str, str]:
    """An arm's level of the factor and its block: everything else that the file says of it."""
    optimizer = "-".join(filter(None, (arm.wrapper, arm.optimizer)))
    arguments = _told({**arm.optimizer_args, **arm.wrapper_args})
    schedule = arm.schedule + _told(arm.schedule_args)
    clip = ", ".join(f"{k.removeprefix('clip_')} {v:g}" for k, v in arm.clip.items()) or "no clip"
    own = {k: getattr(arm, k) for k in ("lr", "batch_size", "weight_decay")}
    box = _told({k: v for k, v in own.items() if v is not None} | dict(arm.search))
    parts = {"optimizer": optimizer + arguments, "schedule": schedule, "clip": clip}
    if factor != "optimizer":  # another optimizer has another box: it belongs to the level
        parts["box"] = f"box{box}" if box else ""
    level = parts.pop(factor)
    if factor == "optimizer":
        return level, ", ".join(filter(None, parts.values()))
    shown = [v for k, v in parts.items() if v and not (k == "clip" and v == "no clip")]
    return level, ", ".join(shown)


def _told(arguments: Mapping[str, object]) -> str:
    if not arguments:
        return ""
    return "(" + ", ".join(f"{k}={v}" for k, v in sorted(arguments.items())) + ")"


class _Label(NamedTuple):
    arm: ArmSection
    result: ArmResult


def pool_studies(
    studies: Sequence[Rows],
    *,
    cost: Cost = "seconds",
    baseline: str | None = None,
    alpha: float = 0.05,
) -> Pooled:
    """Compare the arms that all studies have: those of the same name, or of the same set-up.

    `baseline` is the label that speed-ups and targets refer to; by default the first common arm.

    Raises:
        UsageError: a study is given twice, also under another name, or they have fewer than two
            arms in common.
        NoCompletedTrialError: one of them has nothing to judge by yet.
    """
    twice = [n for n, count in Counter(r.name for r in studies).items() if count > 1]
    if twice:
        raise UsageError(f"study {twice[0]!r} is given twice")
    labelled = [_labels(rows, studies) for rows in studies]
    common = [n for n in labelled[0] if all(n in other for other in labelled)]
    names = ", ".join(r.name for r in studies)
    if len(common) < 2:
        have = "; ".join(
            f"{r.name} has {', '.join(found)}" for r, found in zip(studies, labelled, strict=True)
        )
        raise UsageError(f"{names} have fewer than two arms in common: {have}")
    if baseline is not None and baseline not in common:
        raise UsageError(f"--baseline {baseline}: allowed: {', '.join(common)}")
    reference = baseline or common[0]
    tasks = []
    for rows, found in zip(studies, labelled, strict=True):
        tasks.append(
            TaskScores(
                study=rows.name,
                task=rows.spec.study.task,
                metric=rows.spec.study.metric,
                direction=rows.spec.study.direction,
                arms=[_scores(label, found[label].result) for label in common],
                targets=_relabelled(rows, found, common, reference, cost),
            )
        )
    for one, other in combinations(tasks, 2):
        if repeated := _same_runs(one, other):
            raise UsageError(
                f"{one.study} and {other.study} hold the same runs of {repeated}, which would count"
                " twice: give one of them, or repeat the study with another study.seed"
            )
    left = sorted({n for found in labelled for n in found} - set(common))
    return pool(
        tasks,
        rng=np.random.default_rng(0),
        baseline=reference,
        cost=cost,
        alpha=alpha,
        looks=max(rows.comparison.looks for rows in studies),
        left_out=left,
    )


def _same_runs(one: TaskScores, other: TaskScores) -> str | None:
    """An arm that has the same scores on the same seeds of the same task in both studies, if any.

    A study that is started again under another name repeats its runs exactly.
    """
    for a, b in zip(one.arms, other.arms, strict=True):
        mine, theirs = (dict(zip(x.seeds, x.scores, strict=True)) for x in (a, b))
        seeds = mine.keys() & theirs.keys()
        if one.task == other.task and len(seeds) > 1 and all(mine[s] == theirs[s] for s in seeds):
            return a.name
    return None


def _labels(rows: Rows, studies: Sequence[Rows]) -> dict[str, _Label]:
    """Judged arms by the label under which they are pooled.

    An arm's own name where every study has it; otherwise wrapper, optimizer and schedule, when only
    one arm of the study has these and no arm of another name stands for them elsewhere.
    """
    everywhere = set.intersection(*({a.name for a in r.spec.arms} for r in studies))
    results = {a.name: a for a in rows.comparison.arms}
    setups = Counter(a.default_name for a in rows.spec.arms if a.name not in everywhere)
    found = {}
    for arm in rows.spec.arms:
        if arm.name not in results:
            continue
        unique = arm.name not in everywhere and setups[arm.default_name] == 1
        label = arm.default_name if unique and arm.default_name not in everywhere else arm.name
        found[label] = _Label(arm, results[arm.name])
    return found


def _scores(label: str, result: ArmResult) -> ArmScores:
    return ArmScores(
        name=label,
        optimizer=result.optimizer,
        schedule=result.schedule,
        params={},
        seeds=result.seeds,
        scores=result.scores,
        flags=result.flags,
    )


def _relabelled(
    rows: Rows,
    found: Mapping[str, _Label],
    common: Sequence[str],
    baseline: str,
    cost: Cost,
) -> Targets | None:
    """The study's time to target under the pool's labels; None when its baseline has no median."""
    labels = {found[label].result.name: label for label in common}
    try:
        [targets] = rows.targets(found[baseline].result.name, None, (cost,))
    except UsageError:
        return None
    arms = [a.model_copy(update={"name": labels[a.name]}) for a in targets.arms if a.name in labels]
    return targets.model_copy(update={"baseline": baseline, "arms": arms})
