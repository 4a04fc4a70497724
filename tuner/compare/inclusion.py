"""A self-check of the searches: an optimizer that can imitate another should not lose to it.

Choi et al., arXiv:1910.05446: SGD is a special case of momentum, and momentum of Adam and NAdam
with a large eps, so the more general one, tuned well enough, is never worse. Where it is worse
beyond chance, its search was too narrow, and the comparison says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from tuner.compare import statistics as st
from tuner.compare.verdicts import ArmResult, Comparison

_ADAM_LIKE = frozenset({"adam", "adamw", "nadam", "nadamw", "amsgrad", "radam"})


class ArmSetup(NamedTuple):
    """What was fixed and what was searched in one arm."""

    name: str
    optimizer: str
    schedule: str
    momentum: bool
    fixed: frozenset[str]  # arguments that the study file gives
    searched: frozenset[str]


def _includes(general: ArmSetup, special: ArmSetup) -> bool:
    if special.optimizer != "sgd" or general.schedule != special.schedule:
        return False
    if general.optimizer == "sgd":
        return general.momentum and not special.momentum
    return general.optimizer in _ADAM_LIKE


def _shown_better(better: ArmResult, worse: ArmResult, sign: float, alpha: float) -> bool:
    """Whether a paired t interval on common seeds excludes no difference."""
    found = dict(zip(worse.seeds, worse.scores, strict=True))
    pairs = [(s, found.get(i)) for i, s in zip(better.seeds, better.scores, strict=True)]
    d = [sign * (a - b) for a, b in pairs if a is not None and b is not None]
    interval = st.t_interval(d, 1 - alpha)
    return interval is not None and interval.low > 0


def inclusion_caveats(setups: Sequence[ArmSetup], comparison: Comparison) -> list[str]:
    """One line for each optimizer that is worse than a special case of itself."""
    results = {a.name: a for a in comparison.arms}
    sign = 1.0 if comparison.direction == "maximize" else -1.0
    lines = []
    for general in setups:
        for special in setups:
            if not (results.keys() >= {general.name, special.name}):
                continue
            if not _includes(general, special) or results[general.name].verdict != "worse":
                continue
            knob = "momentum" if general.optimizer == "sgd" else "eps"
            if knob in general.fixed and knob not in general.searched:
                continue  # fixed on purpose
            if _shown_better(results[special.name], results[general.name], sign, comparison.alpha):
                lines.append(
                    f"{general.name} is worse than {special.name}, which it can imitate with "
                    f"the right {knob} (Choi et al. 2019): its search was too narrow, "
                    f"widen its lr and {knob}."
                )
    return lines
