"""The comparison protocol as data: which trials a study needs next, given those it has.

A study passes through stages, each after the one before is done:

    defaults   every arm at its optimizer's published defaults
    lr-range   one LR range test per arm whose learning rate is "auto"; gives the search box
    explore    every arm searches its own box with the same number of trials
    confirm    each arm's best configurations on fresh seeds; chooses one configuration per arm
    decide     the chosen configurations on seeds that took no part in any choice; these judge

Everything here is pure. A trial's number, seed and point depend on the study file and on results
of trials with fixed numbers, never on the order in which trials finish: replaying the store and
asking again gives the plan of an uninterrupted study.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from tuner.records import LrCurve, Stage, StopRule, Trial
from tuner.search import Observation, finite_values, propose
from tuner.space import (
    Point,
    arm_space,
    configuration,
    default_point,
    suggested_point,
    used_params,
)
from tuner.spec import StudySpec

OPEN = ("running", "interrupted")  # states of trials without a result

# Seeds of one study seed; a block of 10,000 so that other study seeds never share one.
_EXPLORE_SEED, _CONFIRM_SEED, _DECIDE_SEED, _SEED_BLOCK = 0, 1_000, 2_000, 10_000

_PRUNE_AT = (0.5, 0.75)  # fractions of a full run, past any warmup
_PRUNE_AFTER = 5  # completed trials of the same arm to compare with


@dataclass(frozen=True)
class History:
    """What a study has so far, by trial number."""

    trials: Mapping[int, Trial]
    curves: Mapping[int, LrCurve]
    evaluations: Mapping[int, Sequence[float]] = field(default_factory=dict)  # the metric, in order

    def of(self, stage: Stage, arm: str | None = None) -> list[Trial]:
        """The trials of a stage (and arm), by number."""
        return [
            self.trials[n]
            for n in sorted(self.trials)
            if self.trials[n].stage == stage and arm in (None, self.trials[n].arm)
        ]

    def curve(self, arm: str) -> LrCurve | None:
        """The arm's LR range test, when it has one."""
        return next(
            (self.curves[t.number] for t in self.of("lr-range", arm) if t.number in self.curves),
            None,
        )


@dataclass(frozen=True)
class Planned:
    """A place in a stage's list; `point` is filled in when everything it depends on is there."""

    arm: str
    seed: int
    index: int = 0  # within arm and stage
    point: Point | None = None


@dataclass(frozen=True)
class StagePlan:
    """A stage as data: the list of its places, and how a place gets its point and stop rules."""

    name: Stage
    places: Callable[[StudySpec, History], list[Planned]]
    point: Callable[[StudySpec, History, Planned], Point | None]
    stop_rules: Callable[[StudySpec, History, Planned], tuple[StopRule, ...]]


def seed_of(spec: StudySpec, offset: int, index: int) -> int:
    """The seed of a trial; seeds of explore, confirm and decide never meet."""
    return spec.study.seed * _SEED_BLOCK + offset + index


def _defaults(spec: StudySpec, history: History) -> list[Planned]:
    return [
        Planned(arm.name, seed_of(spec, _EXPLORE_SEED, s), s, default_point(spec, arm))
        for s in range(spec.budget.default_seeds)
        for arm in spec.arms
    ]


def _lr_range(spec: StudySpec, history: History) -> list[Planned]:
    return [
        Planned(arm.name, seed_of(spec, _EXPLORE_SEED, 0), 0, default_point(spec, arm))
        for arm in spec.arms
        if spec.box(arm).lr == "auto"
    ]


def _explore(spec: StudySpec, history: History) -> list[Planned]:
    # Trial i of every arm has the same seed: same initial weights and data order, fairer arms.
    return [
        Planned(arm.name, seed_of(spec, _EXPLORE_SEED, i), i)
        for i in range(spec.budget.trials_per_arm)
        for arm in spec.arms
    ]


def lookback(spec: StudySpec) -> int:
    """How many trials an arm may propose before the earliest of them has a result.

    Just enough to keep all slots busy; fixed by the file so that proposals do not depend on timing.
    """
    return max(0, math.ceil((spec.run.slots or 1) / len(spec.arms)) - 1)


def _explore_point(spec: StudySpec, history: History, place: Planned) -> Point | None:
    arm, curve = spec.arm(place.arm), history.curve(place.arm)
    if place.index == 0:
        return suggested_point(spec, arm, curve)
    mine = {_index(t): t for t in history.of("explore", arm.name)}
    visible = max(0, place.index - lookback(spec))
    if any(i not in mine for i in range(place.index)):
        return None
    if any(mine[i].state in OPEN for i in range(visible)):
        return None
    seen = [*history.of("defaults", arm.name), *(mine[i] for i in range(visible))]
    return propose(
        arm_space(spec, arm, curve),
        [observation(t) for t in seen],
        [mine[i].point for i in range(visible, place.index)],
        spec.study.direction,
        index=place.index - 1,
        startup=max(3, min(10, spec.budget.trials_per_arm // 2)),
        seed=spec.study.seed * 1_009 + spec.arms.index(arm),
    )


def _explore_stop_rules(spec: StudySpec, history: History, place: Planned) -> tuple[StopRule, ...]:
    if not spec.run.prune:
        return ()
    visible = [
        history.evaluations[t.number]
        for t in history.of("explore", place.arm)
        if _index(t) < place.index - lookback(spec) and t.state == "completed"
    ]
    return stop_rules(spec, visible)


def _index(trial: Trial) -> int:
    return trial.seed % _SEED_BLOCK - _EXPLORE_SEED


def observation(trial: Trial) -> Observation:
    """What the sampler is told about a finished trial."""
    pruned_at = trial.steps if trial.state == "pruned" else None
    return Observation(trial.point, trial.value, pruned_at)


def better_first(spec: StudySpec, trials: Sequence[Trial]) -> list[Trial]:
    """Completed trials, best value first; ties keep their order."""
    sign = 1.0 if spec.study.direction == "minimize" else -1.0
    done = [t for t in trials if t.state == "completed" and t.value is not None]
    return sorted(done, key=lambda t: (sign * (t.value or 0.0), t.number))


def candidates(spec: StudySpec, history: History, arm: str) -> list[Point]:
    """The arm's best distinct points of exploration, its published defaults among them."""
    tried = [*history.of("defaults", arm), *history.of("explore", arm)]
    points: list[Point] = []
    for trial in better_first(spec, tried):
        if trial.point not in points:
            points.append(trial.point)
    return points[: spec.budget.confirm_top]


def _confirm(spec: StudySpec, history: History) -> list[Planned]:
    return [
        Planned(arm.name, seed_of(spec, _CONFIRM_SEED, s), rank, point)
        for s in range(spec.budget.confirm_seeds)
        for arm in spec.arms
        for rank, point in enumerate(candidates(spec, history, arm.name))
    ]


def chosen_point(spec: StudySpec, history: History, arm: str) -> Point | None:
    """The candidate with the best mean over the confirmation seeds; None without a candidate.

    A run without a value counts as worse than any other, it is never dropped.
    """
    trials = history.of("confirm", arm)
    values = finite_values([observation(t) for t in trials], spec.study.direction)
    sign = 1.0 if spec.study.direction == "minimize" else -1.0
    points = [t.point for t in trials]

    def mean(point: Point) -> float:
        scores = [v for p, v in zip(points, values, strict=True) if p == point]
        return sign * statistics.fmean(scores)

    return min(points, key=mean, default=None)


def _decide(spec: StudySpec, history: History) -> list[Planned]:
    chosen = {a.name: chosen_point(spec, history, a.name) for a in spec.arms}
    return [
        Planned(arm.name, seed_of(spec, _DECIDE_SEED, s), s, chosen[arm.name])
        for s in range(spec.budget.decide_seeds)
        for arm in spec.arms
        if chosen[arm.name] is not None
    ]


def _given_point(spec: StudySpec, history: History, place: Planned) -> Point | None:
    return place.point


def _to_the_end(spec: StudySpec, history: History, place: Planned) -> tuple[StopRule, ...]:
    return ()


STAGES: tuple[StagePlan, ...] = (
    StagePlan("defaults", _defaults, _given_point, _to_the_end),
    StagePlan("lr-range", _lr_range, _given_point, _to_the_end),
    StagePlan("explore", _explore, _explore_point, _explore_stop_rules),
    StagePlan("confirm", _confirm, _given_point, _to_the_end),
    StagePlan("decide", _decide, _given_point, _to_the_end),
)


def next_trials(spec: StudySpec, history: History) -> Iterator[Trial]:
    """The trials that can start now, in order; none and nothing running = the study is done.

    A trial that was interrupted comes back as it was. The caller may stop early: each trial is
    worked out only when it is asked for.
    """
    first = 0
    for stage in STAGES:
        places = stage.places(spec, history)
        done = True
        for offset, place in enumerate(places):
            known = history.trials.get(first + offset)
            done = done and known is not None and known.state not in OPEN
            if known is not None:
                if known.state == "interrupted":
                    yield known
                continue
            point = stage.point(spec, history, place)
            if point is not None:
                rules = stage.stop_rules(spec, history, place)
                yield _trial(spec, first + offset, stage.name, place, point, rules)
        if not done:
            return
        first += len(places)


def _trial(
    spec: StudySpec,
    number: int,
    stage: Stage,
    place: Planned,
    point: Point,
    rules: tuple[StopRule, ...],
) -> Trial:
    arm = spec.arm(place.arm)
    params = used_params(spec, arm, point)
    return Trial(
        number=number,
        arm=arm.name,
        stage=stage,
        seed=place.seed,
        state="interrupted",
        point=point,
        params=params,
        configuration=configuration(arm, params),
        stop_rules=rules,
    )


def stage_sizes(spec: StudySpec) -> dict[Stage, int]:
    """How many trials each stage has at most."""
    arms = len(spec.arms)
    return {
        "defaults": arms * spec.budget.default_seeds,
        "lr-range": sum(spec.box(a).lr == "auto" for a in spec.arms),
        "explore": arms * spec.budget.trials_per_arm,
        "confirm": arms * spec.budget.confirm_top * spec.budget.confirm_seeds,
        "decide": arms * spec.budget.decide_seeds,
    }


def judging_stages(spec: StudySpec) -> tuple[Stage, ...]:
    """The stages whose scores judge the arms: those that chose nothing.

    With one candidate per arm, confirmation chose nothing either. Without `decide_seeds` it is all
    there is, and the report says that its scores are optimistic.
    """
    if spec.budget.decide_seeds == 0:
        return ("confirm",)
    return ("confirm", "decide") if spec.budget.confirm_top == 1 else ("decide",)


def stop_rules(spec: StudySpec, evaluations: Sequence[Sequence[float]]) -> tuple[StopRule, ...]:
    """Early stopping of an exploration trial: worse than the median of its own arm.

    `evaluations` hold the metric at every evaluation of the arm's completed trials that the new
    trial may see, so that a rerun gets the same rules. Trials are compared at the same fraction of
    their own schedule and never across arms or schedules: rankings flip during decay.
    """
    rules = []
    for fraction in _PRUNE_AT:
        number = math.ceil(fraction * spec.budget.evaluations)
        values = [run[number - 1] for run in evaluations if len(run) >= number]
        if len(values) >= _PRUNE_AFTER and number < spec.budget.evaluations:
            rules.append(StopRule(evaluation=number, threshold=statistics.median(values)))
    return tuple(rules)
