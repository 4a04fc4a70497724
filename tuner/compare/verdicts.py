"""From the scores of fresh seeds to a verdict per arm and one sentence that can be signed.

How it is decided says `evidence`; what every number means, docs/statistics.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from pydantic import Field

from tuner.compare import statistics as st
from tuner.compare import wording
from tuner.compare.evidence import Evidence, common_differences, gather, pooled_sd
from tuner.compare.looks import nominal_level
from tuner.compare.selection import search_losses
from tuner.records import Direction, Record

Verdict = Literal["best", "contender", "equivalent", "worse", "under-explored"]

FEWEST_TRIALS = 0.5  # of the arm with the most completed trials; below it: under-explored


class ArmScores(Record):
    """The chosen configuration of one arm and its scores on fresh seeds.

    Attributes:
        scores: the metric of each seed; None = diverged, which counts as the worst and is kept.
        explored: completed trials of the search that chose the configuration; None = unknown.
        explored_values: their scores; when every arm gives them, P(best) covers luck in the search.
        confirmed: scores of confirmation (None = diverged) by index of `explored_values`.
        chosen: index of the chosen configuration in `explored_values`; None = the best of them.
        flags: reasons why the search of this arm is not finished, such as "at-bound-lr".
    """

    name: str
    optimizer: str
    schedule: str
    params: dict[str, Any] = Field(default_factory=dict)
    seeds: list[int]
    scores: list[float | None]
    explored: int | None = None
    explored_values: list[float] = Field(default_factory=list)
    confirmed: dict[int, list[float | None]] = Field(default_factory=dict)
    chosen: int | None = None
    flags: list[str] = Field(default_factory=list)


class ArmResult(Record):
    """What is said about one arm. Differences are "this arm minus the leader" in metric units.

    Attributes:
        mean, ci_low, ci_high: over the seeds, diverged ones as the worst; 95 % for alpha 0.05.
        p_value: corrected, against the leader (for the leader: against its closest rival).
        seeds_needed: further common seeds until a difference like the observed one is likely to
            be decided; above `statistics.SEEDS_CAP`: more than that; None when decided.
    """

    name: str
    optimizer: str
    schedule: str
    params: dict[str, Any]
    seeds: list[int]
    scores: list[float | None]
    explored: int | None
    flags: list[str]
    mean: float
    ci_low: float | None
    ci_high: float | None
    p_best: float
    verdict: Verdict
    p_value: float | None
    difference: float | None
    difference_low: float | None
    difference_high: float | None
    seeds_needed: int | None
    note: str


class Comparison(Record):
    """All arms, best first, and the answer.

    Attributes:
        p_better: P(row beats column) for one run of each, rows and columns as `arms`.
        caveats: about the study as a whole; those of an arm are in its note.
    """

    metric: str
    direction: Direction
    alpha: float
    margin: float | None  # differences below it count as none; None when unknown
    margin_given: bool  # by the user; otherwise the pooled seed deviation
    looks: int = 1  # how often the scores were looked at; p values and intervals pay for it
    arms: list[ArmResult]
    p_better: list[list[float]] = Field(default_factory=list)
    expected_regret: float | None  # of taking the leader, in metric units
    method: str
    caveats: list[str] = Field(default_factory=list)
    answer: str


def _check(arms: Sequence[ArmScores]) -> None:
    if not arms:
        raise ValueError("nothing to compare: no arm")
    names = [arm.name for arm in arms]
    if len(set(names)) < len(names):
        raise ValueError(f"arm names must differ, got {names}")
    for arm in arms:
        if not arm.scores or len(arm.scores) != len(arm.seeds):
            raise ValueError(
                f"arm {arm.name!r} has {len(arm.seeds)} seeds and {len(arm.scores)} scores; "
                "allowed: one score for each seed, at least one"
            )
        if len(set(arm.seeds)) < len(arm.seeds):
            raise ValueError(f"arm {arm.name!r} has a seed twice")


def _reasons(arm: ArmScores, most_explored: int) -> list[str]:
    """Why the search of this arm is unfinished, in words."""
    reasons = [wording.flag(flag) for flag in arm.flags]
    if arm.explored is not None and arm.explored < FEWEST_TRIALS * most_explored:
        reasons.append(f"only {arm.explored} completed trials, another arm has {most_explored}")
    return reasons


def _verdict(k: int, e: Evidence, unfinished: bool, margin_given: bool) -> Verdict:
    if k == e.leader:
        return "best" if e.leader_is_best else "contender"
    if unfinished:
        return "under-explored"
    if e.is_worse(k) and not (e.is_equivalent(k) and margin_given):
        return "worse"
    return "equivalent" if e.is_equivalent(k) else "contender"


def _safer(k: int, e: Evidence, arms: Sequence[ArmScores]) -> str | None:
    """An arm whose worst seed is better than that of k by more than its own deviation, if any."""
    worst = np.nanmin(e.scores, axis=1)
    spread = np.nanstd(e.scores, axis=1)
    counts = np.isfinite(e.scores).sum(axis=1)
    safer = [r for r in e.order if r != k and counts[r] > 1 and worst[r] - spread[r] > worst[k]]
    return arms[max(safer, key=lambda r: worst[r])].name if safer else None


def _result(
    k: int,
    e: Evidence,
    arms: Sequence[ArmScores],
    share: float,
    margin_given: bool,
    flip: bool,
    rng: np.random.Generator,
) -> ArmResult:
    """What is said about arm k; `flip` when scores were negated, since the metric is minimized."""
    arm, level = arms[k], nominal_level(e.tests.looks, e.alpha, len(arms))
    reasons = _reasons(arm, max((a.explored or 0 for a in arms), default=0))
    verdict = _verdict(k, e, bool(reasons), margin_given)
    sign = -1.0 if flip else 1.0
    own = e.scores[k][np.isfinite(e.scores[k])]
    low, high = wording.ends(st.bca_interval(own, rng, 1 - e.alpha), flip)
    common = common_differences(e.scores, k, e.leader)
    gap = None if k == e.leader else st.sign_flip_interval(common, rng, 1 - level)
    gap_low, gap_high = wording.ends(gap, flip)
    open_question = k != e.leader and verdict in ("contender", "under-explored")
    p_value = e.beats_all if k == e.leader else e.p_worse(k)
    beaten_by = e.beaten_by(k) if e.p_worse(k) > e.alpha else []
    return ArmResult(
        **arm.model_dump(exclude={"explored_values", "confirmed", "chosen"}),
        mean=sign * float(own.mean()),
        ci_low=low,
        ci_high=high,
        p_best=share,
        verdict=verdict,
        p_value=p_value if len(arms) > 1 and e.tests.done else None,
        difference=sign * float(common.mean()) if k != e.leader and common.size else None,
        difference_low=gap_low,
        difference_high=gap_high,
        seeds_needed=_seeds_needed(common, level) if open_question and not e.is_worse(k) else None,
        note=wording.note(
            reasons=reasons,
            diverged=arm.scores.count(None),
            seeds=len(arm.scores),
            measured_worse=e.is_worse(k) and verdict in ("under-explored", "equivalent"),
            beaten_by=[arms[r].name for r in beaten_by],
            safer=_safer(k, e, arms) if k == e.leader else None,
        ),
    )


def _quality(
    arms: Sequence[ArmScores], scores: st.Array, sd: float, flip: bool, rng: np.random.Generator
) -> st.Array:
    """Draws of the arms' true means; luck in the search included where every arm tells it."""
    sign = -1.0 if flip else 1.0
    worst = sign * float(np.nanmin(scores))
    searches = []
    for arm in arms:
        confirmed = {
            place: [sign * (worst if s is None else s) for s in values]
            for place, values in arm.confirmed.items()
        }
        searches.append((sign * np.array(arm.explored_values), confirmed, arm.chosen))
    sizes = [len(values) for arm in arms for values in arm.confirmed.values()]
    losses = search_losses(
        searches,
        top=max((len(arm.confirmed) for arm in arms), default=1),
        seeds=min(sizes, default=1),
        seed_sd=sd,
        rng=rng,
    )
    return st.quality_draws(scores, rng, losses)


def _wins(scores: st.Array, order: Sequence[int]) -> list[list[float]]:
    """P(row > column) for one run of each arm, arms in `order`."""
    runs = [scores[k][np.isfinite(scores[k])] for k in order]
    return [[st.probability_of_improvement(a, b) for b in runs] for a in runs]


def compare(
    arms: Sequence[ArmScores],
    direction: Direction,
    *,
    rng: np.random.Generator,
    margin: float | None = None,
    alpha: float = 0.05,
    metric: str = "metric",
    looks: int = 1,
) -> Comparison:
    """Judge arms by the scores of fresh seeds; never better than "contender" on one common seed.

    `margin` is the difference in metric units below which the user does not care; without it the
    pooled deviation over seeds is used, and then "worse" goes before "equivalent". `looks` is how
    often the scores were planned to be looked at with `sequential.undecided`, the last included.
    Raises ValueError for a NaN or infinite score, repeated arms or seeds, or no arm.
    """
    _check(arms)
    evidence = gather(
        [dict(zip(arm.seeds, arm.scores, strict=True)) for arm in arms],
        direction,
        rng=rng,
        margin=margin,
        alpha=alpha,
        looks=looks,
    )
    given, flip = margin is not None, direction == "minimize"
    sd = pooled_sd(evidence.scores)
    quality = None if sd is None else _quality(arms, evidence.scores, sd, flip, rng)
    shares = np.full(len(arms), 1 / len(arms)) if quality is None else st.p_best(quality)
    comparison = Comparison(
        metric=metric,
        direction=direction,
        alpha=alpha,
        margin=evidence.margin,
        margin_given=given,
        looks=evidence.tests.looks,
        arms=[
            _result(k, evidence, arms, float(shares[k]), given, flip, rng) for k in evidence.order
        ],
        p_better=_wins(evidence.scores, evidence.order),
        expected_regret=None if quality is None else st.expected_regret(quality, evidence.leader),
        method=evidence.tests.method,
        answer="",
    )
    return comparison.model_copy(update={"answer": wording.answer(comparison)})


def _seeds_needed(common: st.Array, level: float) -> int:
    """Further common seeds to decide a difference like the observed one with 80 % power."""
    fewest = st.fewest_seeds(level)
    if common.size < 2:
        return max(1, fewest - int(common.size))
    deviation = float(common.std(ddof=1))
    effect = abs(float(common.mean())) / deviation if deviation else 0.0
    needed = st.seeds_for_effect(effect, level)
    if needed > st.SEEDS_CAP:
        return needed
    return max(1, needed - int(common.size))


def comparison_json(study_name: str, metric: str, comparison: Comparison) -> dict[str, Any]:
    """The comparison as finite JSON: arms best first; an unknown number is null."""
    arms = comparison.model_dump(mode="json")["arms"]
    return {
        "study": study_name,
        "metric": metric,
        "direction": comparison.direction,
        "alpha": comparison.alpha,
        "margin": comparison.margin,
        "expected_regret": comparison.expected_regret,
        "p_better": comparison.p_better,
        "caveats": comparison.caveats,
        "method": comparison.method,
        "looks": comparison.looks,
        "arms": arms,
        "answer": comparison.answer,
    }
