"""From a limit on the whole study, in steps or hours, to trials and seeds.

What a step and a full trial cost is measured by the first stages, whose rows are in the store: the
numbers that follow are the same whenever they are worked out, and the coordinator keeps them in the
study's row as well.
"""

from __future__ import annotations

import bisect
import statistics
from collections.abc import Mapping
from dataclasses import dataclass

from tuner.records import Trial
from tuner.spec import StudySpec
from tuner.stages.bounds import explore_cost, extra_trials
from tuner.stages.history import OPEN, History

_FEWEST_TRIALS, _MOST = 3, 999
_FEWEST_CONFIRM, _FEWEST_DECIDE = 1, 2  # seeds; the model chooses by all runs, a verdict needs two
BETWEEN = 0.3  # seconds for proposing, storing and handing out a trial, one at a time for all slots
_BUSY = 0.9  # of the slots' time: they wait for each other at the end of a stage


@dataclass(frozen=True)
class Cost:
    """What a full trial of an arm costs."""

    steps: float
    seconds: float


def full_costs(spec: StudySpec, history: History) -> dict[str, Cost]:
    """What a full trial of each arm costs, by its own runs, else by those of the others.

    Empty while nothing has run. Seconds are those of one slot.
    """
    trained = [t for t in history.trials.values() if _tells(t)]
    own = {a.name: [t for t in trained if t.arm == a.name] for a in spec.arms}
    own = {name: _at_defaults(trials) for name, trials in own.items() if trials}
    if not own:
        return {}
    costs = {name: _cost(trials, spec.run.slots or 1) for name, trials in own.items()}
    typical = Cost(
        statistics.fmean(c.steps for c in costs.values()),
        statistics.fmean(c.seconds for c in costs.values()),
    )
    return {a.name: costs.get(a.name, typical) for a in spec.arms}


def _tells(trial: Trial) -> bool:
    return trial.stage != "lr-range" and trial.steps > 0 and trial.state not in OPEN


def _at_defaults(trials: list[Trial]) -> list[Trial]:
    """Runs at the reference batch size that were never interrupted, where there are any."""
    trials = [t for t in trials if t.stage in ("calibrate", "defaults")] or trials
    return [t for t in trials if t.attempts == 1] or trials


def slot_seconds(seconds: float, slots: int) -> float:
    """How long a trial keeps a slot busy, which may be for want of the next one."""
    return max(seconds, BETWEEN * slots)


def _cost(trials: list[Trial], slots: int) -> Cost:
    lengths = [float(t.info.get("total_steps", t.steps)) / t.length for t in trials]
    steps = statistics.median(lengths)
    rate = statistics.median(t.wall_seconds / t.steps for t in trials)
    return Cost(steps, slot_seconds(rate * steps, slots))


def resolved(spec: StudySpec, history: History) -> StudySpec:
    """The study with its numbers of trials and seeds filled in, once the first stages are over."""
    if not spec.budget.is_open:
        return spec
    costs = full_costs(spec, history)
    spent = [t for t in history.trials.values() if t.stage in ("calibrate", "defaults", "lr-range")]
    return divided(
        spec,
        costs or {a.name: Cost(float(spec.budget.max_steps or 1), 1.0) for a in spec.arms},
        spent_steps=sum(t.steps for t in spent),
        spent_seconds=sum(t.wall_seconds for t in spent),
    )


def divided(
    spec: StudySpec,
    costs: Mapping[str, Cost],
    spent_steps: float,
    spent_seconds: float,
) -> StudySpec:
    """Divide what is left of the budget among the stages, by what a full trial costs."""
    budget = spec.budget
    in_seconds = budget.hours is not None
    unit = {
        a: c.seconds if in_seconds else c.steps * statistics.fmean(steps_ratios(spec, a))
        for a, c in costs.items()
    }
    trials = float(budget.trials_per_arm)
    changes: dict[str, object] = {}
    if budget.total_given:
        total = (
            budget.hours * 3600 * (spec.run.slots or 1) * _BUSY
            if budget.hours is not None
            else float(budget.total_steps or 0)
        )
        left = max(0.0, total - (spent_seconds if in_seconds else spent_steps))
        one_of_each = sum(unit.values())
        decide_share = 1 - budget.explore_share - budget.confirm_share
        changes = {
            "confirm_seeds": _whole(
                left * budget.confirm_share / (one_of_each * budget.confirm_top), _FEWEST_CONFIRM
            ),
            "decide_seeds": _whole(left * decide_share / one_of_each, _FEWEST_DECIDE),
        }
        trials = float(_affordable(spec, left * budget.explore_share / one_of_each))
        changes["trials_per_arm"] = int(trials)
    seconds = {a: c.seconds for a, c in costs.items()}
    mean = statistics.fmean(seconds.values())
    clocked = budget.equal == "wall-clock"
    arm_trials = {
        a: _whole(trials * mean / seconds[a] if clocked else trials, _FEWEST_TRIALS) for a in costs
    }
    done = budget.model_copy(update={**changes, "arm_trials": arm_trials})
    return spec.model_copy(update={"budget": done})


def steps_ratios(spec: StudySpec, arm: str) -> list[float]:
    """Steps of a trial at each of an arm's batch sizes, over those at the reference size.

    They are 1 unless trials are equally many examples: then small batches take more steps.
    """
    box = next(spec.box(a) for a in spec.arms if a.name == arm)
    given = bool(spec.budget.max_steps)
    return [1.0 if given else box.reference / size for size in box.batch_size]


def least_cost(spec: StudySpec) -> float:
    """What all that follows the first stages costs at least, in full trials."""
    budget = spec.budget
    needed = (
        _exploration(spec, _FEWEST_TRIALS) / budget.explore_share,
        _FEWEST_CONFIRM * budget.confirm_top / budget.confirm_share,
        _FEWEST_DECIDE / (1 - budget.explore_share - budget.confirm_share),
    )
    return len(spec.arms) * max(needed)


def _exploration(spec: StudySpec, trials: int) -> float:
    """What an arm's search of so many configurations costs in full trials, with a moved bound."""
    budget = spec.budget.model_copy(update={"trials_per_arm": trials})
    spec = spec.model_copy(update={"budget": budget})
    arm = spec.arms[0].name
    return explore_cost(spec, arm) + extra_trials(spec, arm)


def _affordable(spec: StudySpec, full_trials: float) -> int:
    """The most configurations of an arm whose search costs no more than so many full trials."""
    counts = range(_FEWEST_TRIALS, _MOST + 1)
    beyond = bisect.bisect_right(counts, full_trials, key=lambda n: _exploration(spec, n))
    return counts[max(0, beyond - 1)]


def _whole(number: float, least: int) -> int:
    return min(_MOST, max(least, int(number)))
