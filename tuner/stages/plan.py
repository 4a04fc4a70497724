"""From phases to trials: which ones a study needs next, given those it has."""

from __future__ import annotations

from collections.abc import Iterator

from tuner.records import Stage, StopRule, Trial
from tuner.space import Point, configuration, used_params
from tuner.spec import StudySpec
from tuner.stages.bounds import extra_trials, full_trials
from tuner.stages.budget import resolved
from tuner.stages.explore import EXPLORE, EXTEND, SCREEN
from tuner.stages.history import OPEN, History, Phase, Planned
from tuner.stages.judge import CONFIRM, DECIDE
from tuner.stages.start import CALIBRATE, DEFAULTS, LR_RANGE, calibrated_arms, ranged_arms

BEFORE_BUDGET = (LR_RANGE, CALIBRATE, DEFAULTS)
PHASES: tuple[Phase, ...] = (*BEFORE_BUDGET, SCREEN, EXPLORE, EXTEND, CONFIRM, DECIDE)
STAGES: tuple[Stage, ...] = tuple(dict.fromkeys(phase.stage for phase in PHASES))


def next_trials(spec: StudySpec, history: History) -> Iterator[Trial]:
    """The trials that can start now, in order; none and nothing running = the study is done.

    A trial that was interrupted comes back as it was. The caller may stop early: each trial is
    worked out only when it is asked for.
    """
    first = 0
    for phase in PHASES:
        if phase not in BEFORE_BUDGET:
            spec = resolved(spec, history)
        places = phase.places(spec, history)
        done = True
        for offset, place in enumerate(places):
            known = history.trials.get(first + offset)
            done = done and known is not None and known.state not in OPEN
            if known is not None:
                if known.state == "interrupted":
                    yield known
                continue
            point = phase.point(spec, history, place)
            if point is not None:
                rules = phase.stop_rules(spec, history, place)
                yield _trial(spec, first + offset, phase, place, point, rules)
        if not done:
            return
        first += len(places)


def _trial(
    spec: StudySpec,
    number: int,
    phase: Phase,
    place: Planned,
    point: Point,
    rules: tuple[StopRule, ...],
) -> Trial:
    arm = spec.arm(place.arm)
    params = used_params(spec, arm, point)
    return Trial(
        number=number,
        arm=arm.name,
        stage=phase.stage,
        seed=place.seed,
        state="interrupted",
        point=point,
        params=params,
        configuration=configuration(arm, params),
        stop_rules=rules,
        length=phase.length(spec),
    )


def most_trials(spec: StudySpec) -> dict[Stage, dict[str, int]]:
    """How many trials each stage has at most, by arm; a moved bound not counted."""
    budget, arms = spec.budget, [a.name for a in spec.arms]
    noisy, ranged = calibrated_arms(spec), ranged_arms(spec)
    return {
        "lr-range": {a.name: int(a in ranged) for a in spec.arms},
        "calibrate": {a.name: budget.calibrate_seeds * (a in noisy) for a in spec.arms},
        "defaults": dict.fromkeys(arms, budget.default_seeds),
        "screen": {a: spec.trials_of(a) * budget.screens for a in arms},
        "explore": {a: full_trials(spec, a) for a in arms},
        "confirm": dict.fromkeys(arms, budget.confirm_top * budget.confirm_seeds),
        "decide": dict.fromkeys(arms, budget.decide_seeds),
    }


def stage_sizes(spec: StudySpec) -> dict[Stage, int]:
    """How many trials each stage has at most, a moved bound counted."""
    sizes = {stage: sum(arms.values()) for stage, arms in most_trials(spec).items()}
    if spec.budget.extend_trials:
        sizes["explore"] += sum(extra_trials(spec, a.name) for a in spec.arms)
    return sizes


def expected_trials(spec: StudySpec, history: History) -> dict[Stage, dict[str, int]]:
    """How many trials each stage has, by arm: exact for those that are over, else at most so many.

    The second part of exploration counts once a bound was moved.
    """
    spec = resolved(spec, history)
    most = most_trials(spec)
    exact = {stage: dict.fromkeys((a.name for a in spec.arms), 0) for stage in STAGES}
    first = 0
    for reached, phase in enumerate(PHASES):
        places = phase.places(spec, history)
        for place in places:
            exact[phase.stage][place.arm] += 1
        states = [history.trials.get(first + k) for k in range(len(places))]
        first += len(places)
        if any(t is None or t.state in OPEN for t in states):
            now = exact[phase.stage]
            later = {p.stage for p in PHASES[reached + 1 :]} - {phase.stage}
            undecided = {a: max(n, most[phase.stage][a]) for a, n in now.items() if n}
            return exact | {s: most[s] for s in later} | {phase.stage: {**now, **undecided}}
    return exact


def expected_sizes(spec: StudySpec, history: History) -> dict[Stage, int]:
    """The sums of `expected_trials`."""
    return {s: sum(arms.values()) for s, arms in expected_trials(spec, history).items()}
