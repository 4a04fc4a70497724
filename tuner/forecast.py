"""What a study will cost, from its file and the check job, before anything is spent."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from tuner.errors import UsageError
from tuner.records import Stage
from tuner.spec import StudySpec
from tuner.stages import Cost, divided, least_cost, slot_seconds, stage_sizes, steps_ratios


@dataclass(frozen=True)
class Forecast:
    """What a study comes to, at most, if all trials have the reference batch size.

    Attributes:
        spec: with the numbers of trials and seeds that a limit on the whole study leads to.
        trial_steps: of a full trial; None when nothing tells.
        seconds: with all slots at work.
        steps_ratio: how many times the steps a trial takes at the smallest batch size: 1 unless
            trials are equally many examples.
    """

    spec: StudySpec
    sizes: dict[Stage, int]
    trial_steps: int | None
    steps: int | None
    seconds: float | None
    steps_ratio: float


def full_steps(spec: StudySpec, examples: int | None) -> int | None:
    """Optimizer steps of a full trial at the reference batch size."""
    budget, batch = spec.budget, spec.box(spec.arms[0]).reference
    if budget.max_steps:
        return budget.max_steps
    if budget.max_examples:
        return -(-budget.max_examples // batch)
    return round(budget.max_epochs * examples / batch) if budget.max_epochs and examples else None


def forecast(spec: StudySpec, info: Mapping[str, Any], slots: int) -> Forecast:
    """Estimate the cost by what the check job found out; nothing is run.

    Raises:
        UsageError: a limit on the whole study is too small for it.
    """
    trial_steps = full_steps(spec, info.get("n_train"))
    rate = info.get("seconds_per_step")
    if not trial_steps or not rate:
        return Forecast(spec, stage_sizes(spec), trial_steps, None, None, _steps_ratio(spec))
    evaluating = spec.budget.evaluations * info.get("seconds_per_eval", 0.0)
    cost = Cost(float(trial_steps), slot_seconds(trial_steps * rate + evaluating, slots))
    sizes = stage_sizes(spec)
    runs = sizes["calibrate"] + sizes["defaults"]
    ranging = sizes["lr-range"] * spec.budget.lr_range_steps
    spent = Cost(runs * cost.steps + ranging, runs * cost.seconds + ranging * rate)
    if spec.budget.is_open:
        run = spec.run.model_copy(update={"slots": slots})
        spec = spec.model_copy(update={"run": run})
        _refuse_too_small(spec, cost, spent, slots)
        costs = {arm.name: cost for arm in spec.arms}
        spec = divided(spec, costs, spent_steps=spent.steps, spent_seconds=spent.seconds)
        sizes = stage_sizes(spec)
    short = sizes["screen"] * spec.budget.screen_length
    full = short + sizes["explore"] + sizes["confirm"] + sizes["decide"]
    return Forecast(
        spec,
        sizes,
        trial_steps,
        round(spent.steps + full * cost.steps),
        (spent.seconds + full * cost.seconds) / slots,
        _steps_ratio(spec),
    )


def _steps_ratio(spec: StudySpec) -> float:
    return max(ratio for arm in spec.arms for ratio in steps_ratios(spec, arm.name))


def _refuse_too_small(spec: StudySpec, cost: Cost, spent: Cost, slots: int) -> None:
    budget, trials = spec.budget, least_cost(spec)
    if budget.total_steps is not None:
        ratio = fmean(fmean(steps_ratios(spec, arm.name)) for arm in spec.arms)
        least = spent.steps + trials * cost.steps * ratio
        if budget.total_steps < least:
            raise UsageError(
                f"budget.total_steps = {budget.total_steps}: too small for {len(spec.arms)} arms"
                f" with trials of {cost.steps:.0f} steps; allowed: from about {least:.0f}"
            )
    if budget.hours is not None:
        hours = (spent.seconds + trials * cost.seconds) / slots / 3600
        if budget.hours < hours:
            raise UsageError(
                f"budget.hours = {budget.hours:g}: too small for {len(spec.arms)} arms with trials"
                f" of {cost.seconds:.3g} seconds on {slots} slots; allowed: from about {hours:.2g}"
            )
