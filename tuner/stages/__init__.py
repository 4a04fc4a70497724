"""The comparison protocol as data: which trials a study needs next, given those it has.

A study passes through stages, each after the one before is done:

    lr-range   one LR range test per arm whose learning rate is "auto"; gives the search box
    calibrate  the baseline (or every arm) where that points: seed noise, step time, memory
    defaults   every arm at its optimizer's published defaults
    screen     every arm tries many configurations in short runs, their schedules rescaled
    explore    the most promising ones at full length; a bound that the best lies on is moved once
    confirm    each arm's best configurations on fresh seeds; chooses one configuration per arm
    decide     the chosen configurations on seeds that took no part in any choice, until the arms
               are told apart or the budget ends; these judge

Everything here is pure. A trial's number, seed and point depend on the study file and on results
of trials with fixed numbers, never on the order in which trials finish: replaying the store and
asking again gives the plan of an uninterrupted study.
"""

from tuner.stages.bounds import (
    as_explored,
    final_box,
    full_trials,
    unresolved_bounds,
    widenings,
)
from tuner.stages.budget import (
    Cost,
    divided,
    full_costs,
    least_cost,
    resolved,
    slot_seconds,
    steps_ratios,
)
from tuner.stages.expected import expected, leading
from tuner.stages.explore import evaluations_of, lookback, stop_rules
from tuner.stages.history import OPEN, History, Planned, better_first
from tuner.stages.judge import candidates, chosen_point, judged_trials, judging_stages, looks
from tuner.stages.plan import (
    STAGES,
    expected_sizes,
    expected_trials,
    next_trials,
    stage_sizes,
)
from tuner.stages.start import Calibration, calibration, detectable_in_words, ranged_arms
from tuner.stages.warm import warm_arms

__all__ = [
    "OPEN",
    "STAGES",
    "Calibration",
    "Cost",
    "History",
    "Planned",
    "as_explored",
    "better_first",
    "calibration",
    "candidates",
    "chosen_point",
    "detectable_in_words",
    "divided",
    "evaluations_of",
    "expected",
    "expected_sizes",
    "expected_trials",
    "final_box",
    "full_costs",
    "full_trials",
    "judged_trials",
    "judging_stages",
    "leading",
    "least_cost",
    "lookback",
    "looks",
    "next_trials",
    "ranged_arms",
    "resolved",
    "slot_seconds",
    "stage_sizes",
    "steps_ratios",
    "stop_rules",
    "unresolved_bounds",
    "warm_arms",
    "widenings",
]
