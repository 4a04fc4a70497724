"""How soon a target is reached: in steps, examples and wall-clock, with runs that never get there.

A run that ends without the target is censored: it would have needed longer than its horizon, or
for ever. It is neither dropped nor given a made-up time: medians come from the Kaplan-Meier curve
(Kaplan and Meier, JASA 53, 1958), and mean costs are counted up to a horizon that every run was
followed to (restricted mean survival time, Royston and Parmar, BMC Med. Res. Meth. 13, 2013). A
diverged run is a run that never reaches the target, not one that was followed for a short time:
censoring it where it diverged would say that it might have been quick.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np

from tuner.compare import statistics as st
from tuner.records import Direction, Evaluation, Record

Cost = Literal["steps", "examples", "seconds"]
COSTS: tuple[Cost, ...] = ("steps", "examples", "seconds")


class Run(NamedTuple):
    """One judged run: (cost, metric) at each evaluation, costs rising; empty when it diverged."""

    seed: int
    curve: Sequence[tuple[float, float]]


class Followed(NamedTuple):
    """When a run reached the target (None = never), and to which cost it was followed."""

    seed: int
    time: float | None
    end: float


class ArmTimes(Record):
    """When the runs of one arm reach the target.

    Attributes:
        times: of each seed, None = never within the horizon.
        ends: to which cost each run was followed.
        median, median_low, median_high: Kaplan-Meier; None = not reached by half of the runs (low,
            high: by the interval's end).
        mean, mean_low, mean_high: cost until the target, counted up to `Targets.horizon`.
        speedup, speedup_low, speedup_high: of this arm over the baseline, geometric mean over
            common seeds, counted up to the horizon of these two; 2 = half the cost. None without
            two common seeds.
    """

    name: str
    seeds: list[int]
    times: list[float | None]
    ends: list[float]
    reached: int
    median: float | None
    median_low: float | None
    median_high: float | None
    mean: float
    mean_low: float | None
    mean_high: float | None
    speedup: float | None
    speedup_low: float | None
    speedup_high: float | None


class Targets(Record):
    """Time to target of all arms on one cost axis."""

    cost: Cost
    target: float
    baseline: str  # speed-ups are over it; its median gave the target unless the user did
    horizon: float
    arms: list[ArmTimes]


def cost_of(evaluation: Evaluation, cost: Cost) -> float:
    """What a run had spent at an evaluation."""
    return float(
        {
            "steps": evaluation.step,
            "examples": evaluation.examples,
            "seconds": evaluation.seconds,
        }[cost]
    )


def median_target(finals: Sequence[float | None], direction: Direction) -> float:
    """The median of the baseline's final scores, diverged ones (None) as the worst.

    With an even number the worse of the two middle scores, which at least half of the runs reach.
    Raises ValueError when that is a diverged run, or there is none.
    """
    sign = 1.0 if direction == "minimize" else -1.0
    ordered = sorted(math.inf if f is None else sign * f for f in finals)
    middle = ordered[len(ordered) // 2] if ordered else math.inf
    if not math.isfinite(middle):
        raise ValueError("the baseline has no median score: half of its runs diverged")
    return sign * middle


def first_reach(
    curve: Sequence[tuple[float, float]], target: float, direction: Direction
) -> float | None:
    """The cost at the first evaluation at least as good as the target; None = never."""
    sign = 1.0 if direction == "minimize" else -1.0
    return next((x for x, y in curve if sign * y <= sign * target), None)


def kaplan_meier(
    times: Sequence[float | None], ends: Sequence[float], level: float = 0.95
) -> tuple[st.Array, st.Array, st.Array, st.Array]:
    """Share of runs that reached the target by each cost: costs, share, lower and upper end.

    `times` None = censored at its entry of `ends`. Pointwise intervals by Greenwood's variance on
    the log-log scale. Raises ValueError without a run.
    """
    from scipy import stats

    if not times:
        raise ValueError("a curve needs at least one run")
    observed = [e if t is None else t for t, e in zip(times, ends, strict=True)]
    sample = stats.CensoredData.right_censored(observed, [t is None for t in times])
    survival = stats.ecdf(sample).sf
    with warnings.catch_warnings(), np.errstate(divide="ignore", invalid="ignore"):
        warnings.simplefilter("ignore", RuntimeWarning)  # at shares 0 and 1 there is no variance
        interval = survival.confidence_interval(level, method="log-log")
    share = 1 - survival.probabilities
    low = np.nan_to_num(1 - interval.high.probabilities, nan=0.0)
    high = np.where(share >= 1, 1.0, np.nan_to_num(1 - interval.low.probabilities, nan=1.0))
    return survival.quantiles, share, np.minimum(low, share), np.maximum(high, share)


def _crossing(costs: st.Array, share: st.Array) -> float | None:
    """The first cost at which half of the runs are there."""
    there = np.flatnonzero(share >= 0.5 - 1e-12)
    return float(costs[there[0]]) if there.size else None


def _speedup(
    arm: Mapping[int, float], baseline: Mapping[int, float], level: float
) -> tuple[float | None, float | None, float | None]:
    common = sorted(arm.keys() & baseline.keys())
    logs = [math.log(baseline[s] / arm[s]) for s in common]
    interval = st.t_interval(logs, level)
    if interval is None:
        return None, None, None
    return math.exp(float(np.mean(logs))), math.exp(interval.low), math.exp(interval.high)


def _horizon(arms: Iterable[Sequence[Followed]]) -> float:
    """The cost to which every run was followed, if it did not reach the target before.

    A run that is there needs no following. So an arm whose runs end early, on a clock because they
    are fast, limits what is known of the others only if it misses the target.
    """
    runs = [run for mine in arms for run in mine]
    missed = [end for _, time, end in runs if time is None]
    return min(missed, default=max(end for _, _, end in runs))


def _spent(runs: Sequence[Followed], horizon: float) -> dict[int, float]:
    """By seed, the cost until the target, counted up to a horizon."""
    return {seed: horizon if time is None else min(time, horizon) for seed, time, _ in runs}


def time_to_target(
    runs: Mapping[str, Sequence[Run]],
    target: float,
    direction: Direction,
    *,
    baseline: str,
    cost: Cost = "steps",
    level: float = 0.95,
) -> Targets:
    """When each arm's runs reach the target, and how much sooner than the baseline's.

    `runs` holds each arm's judged runs; every cost must be positive. Arms without a run are left
    out. Raises ValueError when no run has an evaluation, or the baseline none.
    """
    runs = {name: mine for name, mine in runs.items() if mine}
    last = {n: [r.curve[-1][0] for r in mine if r.curve] for n, mine in runs.items()}
    longest = max((max(ends) for ends in last.values() if ends), default=None)
    if longest is None:
        raise ValueError("no run has an evaluation, so nothing can reach a target")
    if baseline not in runs:
        raise ValueError(f"baseline {baseline!r} has no judged run; allowed: {', '.join(runs)}")
    followed: dict[str, list[Followed]] = {}
    for name, mine in runs.items():
        own_end = max(last[name], default=longest)
        followed[name] = [
            Followed(
                r.seed,
                first_reach(r.curve, target, direction),
                float(r.curve[-1][0] if r.curve else own_end),
            )
            for r in mine
        ]
    horizon = _horizon(followed.values())
    arms = []
    for name, ours in followed.items():
        seeds, times, ends = (list(column) for column in zip(*ours, strict=True))
        costs, share, low, high = kaplan_meier(times, ends, level)
        spent = _spent(ours, horizon)
        mean = st.t_interval(list(spent.values()), level)
        speedup = low_end = high_end = None
        if name != baseline:
            both = _horizon([ours, followed[baseline]])
            speedup, low_end, high_end = _speedup(
                _spent(ours, both), _spent(followed[baseline], both), level
            )
        arms.append(
            ArmTimes(
                name=name,
                seeds=seeds,
                times=times,
                ends=ends,
                reached=sum(t is not None for t in times),
                median=_crossing(costs, share),
                median_low=_crossing(costs, high),
                median_high=_crossing(costs, low),
                mean=float(np.mean(list(spent.values()))),
                mean_low=mean and mean.low,
                mean_high=mean and mean.high,
                speedup=speedup,
                speedup_low=low_end,
                speedup_high=high_end,
            )
        )
    return Targets(cost=cost, target=target, baseline=baseline, horizon=horizon, arms=arms)
