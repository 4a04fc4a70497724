"""What a study has so far, and the seeds and order by which its stages read it."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from tuner.observed import Observation
from tuner.records import LrCurve, Stage, StopRule, Trial
from tuner.space import Point
from tuner.spec import StudySpec

OPEN = ("running", "interrupted")  # states of trials without a result

FIRST_RUNS: tuple[Stage, ...] = ("calibrate", "defaults")

# Seeds of one study seed: a thousand for each purpose, in a block of 10,000 so that other study
# seeds never share one.
TRYING, EXPLORING, CONFIRMING, DECIDING, SEED_BLOCK = 0, 1_000, 2_000, 3_000, 10_000


@dataclass(frozen=True)
class History:
    """What a study has so far, by trial number."""

    trials: Mapping[int, Trial]
    curves: Mapping[int, LrCurve]
    evaluations: Mapping[int, Sequence[float]] = field(default_factory=dict)  # the metric, in order

    @cached_property
    def _sorted(self) -> dict[tuple[Stage, str | None], list[Trial]]:
        found: dict[tuple[Stage, str | None], list[Trial]] = {}
        for number in sorted(self.trials):
            trial = self.trials[number]
            found.setdefault((trial.stage, None), []).append(trial)
            found.setdefault((trial.stage, trial.arm), []).append(trial)
        return found

    def of(self, stage: Stage, arm: str | None = None) -> list[Trial]:
        """The trials of a stage (and arm), by number."""
        return self._sorted.get((stage, arm), [])

    def first_runs(self, arm: str | None = None) -> list[Trial]:
        """The full runs before the search."""
        return [trial for stage in FIRST_RUNS for trial in self.of(stage, arm)]

    def curve(self, arm: str) -> LrCurve | None:
        """The arm's LR range test, when it has one that tells of its learning rate.

        That of prodigy, whose learning rate stays 1, tells of another number.
        """
        tested = (self.curves.get(t.number) for t in self.of("lr-range", arm))
        return next((c for c in tested if c is not None and c.axis == "lr"), None)


@dataclass(frozen=True)
class Planned:
    """A place in a stage's list; `point` is filled in when everything it depends on is there."""

    arm: str
    seed: int
    index: int = 0  # within arm and stage
    point: Point | None = None


@dataclass(frozen=True)
class Phase:
    """A part of a stage as data: its places, and how one gets its point and stop rules.

    `places` may look at everything that earlier phases found, and may append places by what its own
    first ones found; places that it named once stay what they are.
    """

    stage: Stage
    places: Callable[[StudySpec, History], list[Planned]]
    point: Callable[[StudySpec, History, Planned], Point | None]
    stop_rules: Callable[[StudySpec, History, Planned], tuple[StopRule, ...]]
    length: Callable[[StudySpec], float] = lambda spec: 1.0  # of a full trial


def given_point(spec: StudySpec, history: History, place: Planned) -> Point | None:
    """The point that the place was planned with."""
    return place.point


def to_the_end(spec: StudySpec, history: History, place: Planned) -> tuple[StopRule, ...]:
    """No early stopping."""
    return ()


def seed_of(spec: StudySpec, purpose: int, index: int) -> int:
    """The seed of a trial; those of different purposes never meet."""
    return spec.study.seed * SEED_BLOCK + purpose + index


def index_of(trial: Trial) -> int:
    """A trial's place within its arm and purpose."""
    return trial.seed % SEED_BLOCK % 1_000


def sign(spec: StudySpec) -> float:
    """1 where small values are good, else -1."""
    return 1.0 if spec.study.direction == "minimize" else -1.0


def observation(trial: Trial) -> Observation:
    """What the sampler is told about a finished trial."""
    pruned_at = trial.steps if trial.state == "pruned" else None
    return Observation(trial.point, trial.value, pruned_at, trial.length)


def better_first(spec: StudySpec, trials: Sequence[Trial]) -> list[Trial]:
    """Completed trials, best value first; ties keep their order."""
    done = [t for t in trials if t.state == "completed" and t.value is not None]
    return sorted(done, key=lambda t: (sign(spec) * (t.value or 0.0), t.number))


def best_points(spec: StudySpec, trials: Sequence[Trial]) -> list[Point]:
    """Distinct points of completed trials by their mean value, best first."""
    points: list[Point] = []
    values: list[list[float]] = []
    for trial in better_first(spec, trials):
        if trial.point not in points:
            points.append(trial.point)
            values.append([])
        values[points.index(trial.point)].append(trial.value or 0.0)
    means = [sign(spec) * statistics.fmean(found) for found in values]
    return [points[k] for k in sorted(range(len(points)), key=means.__getitem__)]
