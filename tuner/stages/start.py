"""The first stages: one LR range test an arm, seed noise where it points, published defaults."""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from tuner.compare.statistics import minimum_detectable_effect, sd_interval
from tuner.records import Trial
from tuner.space import Point, arm_space, default_point, inside, suggested_point
from tuner.spec import ArmSection, StudySpec
from tuner.stages.history import (
    TRYING,
    History,
    Phase,
    Planned,
    given_point,
    seed_of,
    to_the_end,
)


def calibrated_arms(spec: StudySpec) -> Sequence[ArmSection]:
    """The arms whose seed noise is measured: the baseline, which is the first, or all."""
    return spec.arms if spec.budget.calibrate_arms == "all" else spec.arms[:1]


def _at_defaults(spec: StudySpec, arm: ArmSection, index: int) -> Planned:
    return Planned(arm.name, seed_of(spec, TRYING, index), index, default_point(spec, arm))


def first_points(spec: StudySpec, history: History, arm: ArmSection) -> list[Point]:
    """What an arm tries first: the best of older studies, then the range test's suggestion."""
    curve = history.curve(arm.name)
    space, default = arm_space(spec, arm, curve), default_point(spec, arm)
    points: list[Point] = []
    known = spec.warm[arm.name].points if arm.name in spec.warm else ()
    for point in known[: max(1, spec.trials_of(arm.name) // 2)]:
        mapped = inside(space, point, default)
        if mapped not in points:
            points.append(mapped)
    if curve is not None or not points:
        points.append(suggested_point(spec, arm, curve))
    return points


def _calibrate(spec: StudySpec, history: History) -> list[Planned]:
    """On seeds of their own: the first of the others are those of the published defaults."""
    first = spec.budget.default_seeds
    starts = {a.name: first_points(spec, history, a)[0] for a in calibrated_arms(spec)}
    return [
        Planned(arm, seed_of(spec, TRYING, s), s, point)
        for s in range(first, first + spec.budget.calibrate_seeds)
        for arm, point in starts.items()
    ]


def _defaults(spec: StudySpec, history: History) -> list[Planned]:
    return [
        _at_defaults(spec, arm, s) for s in range(spec.budget.default_seeds) for arm in spec.arms
    ]


def ranged_arms(spec: StudySpec) -> list[ArmSection]:
    """The arms that need a range test: their box is "auto" and no older study knows it."""
    return [
        arm
        for arm in spec.arms
        if spec.box(arm).lr == "auto"
        and (arm.name not in spec.warm or spec.warm[arm.name].lr is None)
    ]


def _lr_range(spec: StudySpec, history: History) -> list[Planned]:
    return [_at_defaults(spec, arm, 0) for arm in ranged_arms(spec)]


CALIBRATE = Phase("calibrate", _calibrate, given_point, to_the_end)
DEFAULTS = Phase("defaults", _defaults, given_point, to_the_end)
LR_RANGE = Phase("lr-range", _lr_range, given_point, to_the_end)


@dataclass(frozen=True)
class Calibration:
    """What runs that differ in their seeds only say about a study.

    Attributes:
        sigma: the seed standard deviation of the metric, pooled over configurations; None without
            two runs of one, or when all such runs ended alike.
        runs: how many runs it comes from.
        freedom: its degrees of freedom: runs less configurations.
        detectable: the smallest difference between two arms that the decide stage finds in four
            of five studies, after correction for the number of arms.
        seeds: with which it does so.
    """

    sigma: float | None
    runs: int
    freedom: int
    detectable: float | None
    seeds: int
    step_seconds: float | None
    memory_bytes: int | None

    def __str__(self) -> str:
        if self.sigma is None:
            alike = f"{self.runs} runs ended alike, which tells nothing yet"
            reason = alike if self.runs else "fewer than two runs of one configuration completed"
            return f"seed noise: unknown, {reason}"
        low, high = sd_interval(self.sigma, self.freedom)
        text = f"seed noise {self.sigma:.3g} ({self.runs} runs; likely {low:.2g} .. {high:.2g})"
        if self.detectable is None:
            return f"{text}; one seed for the decision shows no difference at all"
        return (
            f"{text}; with up to {self.seeds} seeds an arm this study can tell apart arms that"
            f" differ by {self.detectable:.3g} or more"
        )


def calibration(spec: StudySpec, history: History) -> Calibration:
    """Seed noise, cost and what they mean, from all full runs that share a configuration."""
    groups = defaultdict(list)
    for trial in (*history.first_runs(), *history.of("confirm"), *history.of("decide")):
        groups[trial.arm, *sorted(trial.point.items())].append(trial)
    several = [v for v in map(completed_values, groups.values()) if len(v) > 1]
    freedom = sum(len(values) - 1 for values in several)
    squares = sum(statistics.variance(v) * (len(v) - 1) for v in several)
    sigma = math.sqrt(squares / freedom) if squares else None
    seeds = judging_seeds(spec)
    detectable = None
    if sigma is not None:
        others = max(1, len(spec.arms) - 1)
        detectable = minimum_detectable_effect(seeds, sigma, others)
    runs = [t for group in groups.values() for t in group if t.state == "completed"]
    rates = [t.wall_seconds / t.steps for t in runs if t.steps]
    memory = [int(t.info["peak_memory_bytes"]) for t in runs if "peak_memory_bytes" in t.info]
    return Calibration(
        sigma=sigma,
        runs=sum(map(len, several)),
        freedom=freedom,
        detectable=detectable,
        seeds=seeds,
        step_seconds=statistics.median(rates) if rates else None,
        memory_bytes=max(memory, default=None),
    )


def detectable_in_words(spec: StudySpec) -> str:
    """What difference the decide stage can find, in the seed noise that is not known yet."""
    seeds = judging_seeds(spec)
    effect = minimum_detectable_effect(seeds, 1.0, max(1, len(spec.arms) - 1))
    if effect is None:
        return "no difference: the arms are judged by one seed"
    return (
        f"arms that differ by {effect:.2g} deviations of the seed noise or more, with up to {seeds}"
        " seeds; calibration measures it first"
    )


def judging_seeds(spec: StudySpec) -> int:
    """The most seeds that can judge an arm."""
    budget = spec.budget
    confirms = budget.decide_seeds == 0 or budget.confirm_top == 1
    return budget.decide_seeds + (budget.confirm_seeds if confirms else 0)


def completed_values(trials: Sequence[Trial]) -> list[float]:
    """The values of completed trials."""
    return [t.value for t in trials if t.state == "completed" and t.value is not None]
