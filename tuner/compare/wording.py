"""Plain words for numbers: notes, numbers with their uncertainty, and the answer sentence.

A difference that was not found is never called equality: it says which difference the data
leave possible.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tuner.compare.statistics import SEEDS_CAP, Interval
from tuner.records import setting

if TYPE_CHECKING:
    from tuner.compare.verdicts import ArmResult, Comparison

AT_BOUND = "at-bound"
SETTING_NAMES = {"lr": "lr", "batch_size": "batch size", "weight_decay": "weight decay"}


def flag(text: str) -> str:
    """A flag in words: `at-bound-lr` -> its best lr lies on a bound of the search box."""
    if not text.startswith(AT_BOUND):
        return text
    name = text.removeprefix(AT_BOUND).strip("-")
    what = SETTING_NAMES.get(name, name) or "point"
    return f"its best {what} lies on a bound of the search box"


def ends(interval: Interval | None, flip: bool) -> tuple[float | None, float | None]:
    """Both ends in metric units; `flip` when the scores were negated (metric minimized)."""
    if interval is None:
        return None, None
    return (-interval.high, -interval.low) if flip else (interval.low, interval.high)


def settings(params: Mapping[str, Any]) -> str:
    """`lr 0.003, batch size 64, weight decay 0.01`, then the others in their order."""
    names = [n for n in SETTING_NAMES if n in params]
    names += [n for n in params if n not in SETTING_NAMES]
    return ", ".join(f"{SETTING_NAMES.get(n, n)} {setting(params[n])}" for n in names)


def number(value: float, uncertainty: float | None = None) -> str:
    """Digits down to a tenth of the uncertainty's leading digit; four significant without one."""
    if not uncertainty or not math.isfinite(uncertainty):
        return f"{value:.4g}"
    decimals = 1 - math.floor(math.log10(abs(uncertainty)))
    if not 0 <= decimals <= 8:
        return f"{value:.4g}"
    return f"{value:.{decimals}f}"


def span(low: float | None, high: float | None) -> str:
    """`0.950 .. 0.956`, or a dash when there is no interval."""
    if low is None or high is None:
        return "-"
    half = (high - low) / 2
    return f"{number(low, half)} .. {number(high, half)}"


def cost_amount(value: float | None, cost: str) -> str:
    """`350 steps`, `12.3 s`, or "not reached"."""
    if value is None:
        return "not reached"
    return f"{value:.3g} s" if cost == "seconds" else f"{value:,.0f} {cost}"


def speedup(low: float | None, value: float | None, high: float | None) -> str:
    """`1.8x (1.4 .. 2.3)`, or a dash."""
    if value is None or low is None or high is None:
        return "-"
    return f"{value:.2f}x ({low:.2f} .. {high:.2f})"


def more_seeds(count: int) -> str:
    """`about 6 more seeds`, or more than the cap."""
    if count > SEEDS_CAP:
        return f"more than {SEEDS_CAP} more seeds"
    return f"about {count} more seed{'s' if count > 1 else ''}"


def note(
    *,
    reasons: Sequence[str],
    diverged: int,
    seeds: int,
    measured_worse: bool,
    beaten_by: Sequence[str],
    safer: str | None = None,
) -> str:
    """The caveats of one arm, joined by semicolons; empty when there are none."""
    parts = list(reasons)
    if measured_worse:
        parts.append("worse than the leader where it was measured")
    if beaten_by:
        parts.append(f"beaten by {', '.join(beaten_by)}")
    if safer:
        parts.append(f"better on average, but its worst seed is worse than that of {safer}")
    if diverged:
        parts.append(f"diverged on {diverged} of {seeds} seeds, counted as the worst score")
    return "; ".join(parts)


def configuration(arm: ArmResult) -> str:
    """`adamw with cosine (lr 0.003, ...)`."""
    chosen = settings(arm.params)
    return f"{arm.optimizer} with {arm.schedule}" + (f" ({chosen})" if chosen else "")


def mean(arm: ArmResult) -> str:
    """The mean with the digits that its interval supports."""
    if arm.ci_low is None or arm.ci_high is None:
        return number(arm.mean)
    return number(arm.mean, (arm.ci_high - arm.ci_low) / 2)


def mean_with_interval(arm: ArmResult, level: int) -> str:
    """`0.953 (95 % interval 0.950 to 0.956, 8 seeds)`."""
    seeds = f"{len(arm.seeds)} seed{'s' if len(arm.seeds) > 1 else ''}"
    if arm.ci_low is None or arm.ci_high is None:
        return f"{number(arm.mean)} ({seeds}, no interval)"
    low_to_high = span(arm.ci_low, arm.ci_high).replace("..", "to")
    return f"{mean(arm)} ({level} % interval {low_to_high}, {seeds})"


def _possible(arm: ArmResult) -> str:
    """The largest difference that the data leave possible."""
    if arm.difference_low is None or arm.difference_high is None:
        return "no interval yet"
    low, high = arm.difference_low, arm.difference_high
    return f"no difference larger than {max(abs(low), abs(high)):.2g} detected"


def _rival(arm: ArmResult) -> str:
    """How much worse than the leader, as a size, whatever the direction of the metric."""
    if arm.difference is None:
        return f"{arm.name} (no common seed)"
    low, high = arm.difference_low, arm.difference_high
    if low is None or high is None:
        return f"{arm.name} (by {abs(arm.difference):.2g})"
    if arm.difference < 0:
        low, high = -high, -low
    size = number(abs(arm.difference), (high - low) / 2)
    return f"{arm.name} (by {size}, interval {span(low, high).replace('..', 'to')})"


def answer(comparison: Comparison) -> str:
    """The whole result in a few plain sentences, the winner's settings included."""
    leader, *others = comparison.arms
    level = round(100 * (1 - comparison.alpha))
    reached = f"{comparison.metric} {mean_with_interval(leader, level)}"
    by = {v: [a for a in others if a.verdict == v] for v in {a.verdict for a in others}}
    if not others:
        return f"Only one arm, so nothing to compare: {configuration(leader)} reached {reached}."
    if leader.verdict == "best":
        head = f"{leader.name} is best: {configuration(leader)} reached {reached}."
    else:
        head = (
            f"No arm is best beyond doubt. {leader.name} leads: "
            f"{configuration(leader)} reached {reached}."
        )
    parts = [head]
    if worse := by.get("worse"):
        parts.append(f"Worse after correction: {', '.join(map(_rival, worse))}.")
    contenders = by.get("contender", [])
    if alike := [a for a in contenders if a.difference_low == a.difference_high == 0]:
        names = ", ".join(a.name for a in alike)
        parts.append(
            f"Alike on every seed: {names}. {comparison.metric} is too coarse to tell them apart,"
            " or at its best value; a finer metric or shorter runs may."
        )
    if close := [a for a in contenders if a not in alike]:
        told = ", ".join(
            f"{a.name} ({_possible(a)}; {more_seeds(a.seeds_needed or 1)})" for a in close
        )
        parts.append(f"Not told apart from it, with the seeds that would likely decide: {told}.")
    if same := by.get("equivalent"):
        told = ", ".join(f"{a.name} ({_possible(a)})" for a in same)
        given = "" if comparison.margin_given else ", the deviation over seeds"
        parts.append(f"Equivalent within {comparison.margin:.2g}{given}: {told}.")
    if unfinished := by.get("under-explored"):
        told = ", ".join(f"{a.name} ({a.note})" for a in unfinished)
        parts.append(f"Under-explored, so not judged worse: {told}.")
    if leader.note:
        parts.append(f"Caveat for {leader.name}: {leader.note}.")
    return " ".join(parts)
