"""What one factor does, over arms that differ in nothing else.

Comparing the mean of all arms with schedule A to that of all arms with schedule B would compare
their optimizers too. Only matched arms count: a *block* holds arms that agree in everything but the
factor, and a contrast of two levels is the mean over the blocks that have both, seed by seed, as in
a randomised block design. A pair of levels without a common block has no answer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import NamedTuple

import numpy as np

from tuner.compare import statistics as st
from tuner.records import Direction, Record


class Cell(NamedTuple):
    """One arm: its level of the factor, and everything else about it."""

    arm: str
    level: str
    block: str
    scores: Mapping[int, float | None]  # of fresh seeds, None = diverged


class BlockContrast(Record):
    """The difference within one block, in metric units."""

    block: str
    arms: tuple[str, str]
    difference: float
    low: float | None
    high: float | None


class Contrast(Record):
    """Level minus other level, over the blocks that have both.

    Attributes:
        seeds: common to all of these blocks.
        p_value: of the two-sided sign-flip test on seeds, corrected for all contrasts (Holm).
        interaction: the difference is not the same in every block, beyond chance.
        better: the level shown to be better; None = no difference detected, or blocks disagree.
    """

    level: str
    other: str
    blocks: list[BlockContrast]
    seeds: int
    difference: float
    low: float | None
    high: float | None
    p_value: float | None
    interaction: bool
    better: str | None


class Marginal(Record):
    """A factor's levels, their contrasts, and what the design cannot say."""

    factor: str
    metric: str
    direction: Direction
    levels: dict[str, list[str]]  # level -> arms
    contrasts: list[Contrast]
    unanswered: list[str]
    answer: str


def _differences(first: Mapping[int, float], second: Mapping[int, float]) -> dict[int, float]:
    return {seed: first[seed] - second[seed] for seed in sorted(first.keys() & second.keys())}


def _interaction(blocks: Sequence[dict[int, float]], seeds: Sequence[int], alpha: float) -> bool:
    """Whether two blocks differ in their differences: paired over seeds, Bonferroni."""
    pairs = list(combinations(blocks, 2))
    for a, b in pairs:
        d = [a[s] - b[s] for s in seeds]
        interval = st.t_interval(d, 1 - alpha / len(pairs))
        if interval and (interval.low > 0 or interval.high < 0):
            return True
    return False


def marginalise(
    cells: Sequence[Cell],
    direction: Direction,
    *,
    factor: str,
    metric: str,
    rng: np.random.Generator,
    alpha: float = 0.05,
) -> Marginal:
    """Contrast the levels of a factor within blocks of arms that differ in nothing else.

    Raises ValueError for a NaN or infinite score, and when every run diverged.
    """
    filled = st.finite_worst([list(c.scores.values()) for c in cells], direction)
    values = [dict(zip(c.scores, row, strict=True)) for c, row in zip(cells, filled, strict=True)]
    place = {(c.block, c.level): k for k, c in enumerate(cells)}
    levels = list(dict.fromkeys(c.level for c in cells))
    deviations = [np.std(list(v.values()), ddof=1) for v in values if len(v) > 1]
    floor = float(np.sqrt(np.mean(np.square(deviations)))) * np.sqrt(2) if deviations else 0.0
    made: list[Contrast] = []
    unanswered: list[str] = []
    p_values: list[float] = []
    for level, other in combinations(levels, 2):
        blocks = [b for b, found in place if found == level and (b, other) in place]
        inside = [_differences(values[place[b, level]], values[place[b, other]]) for b in blocks]
        kept = [(b, d) for b, d in zip(blocks, inside, strict=True) if d]
        if not kept:
            unanswered.append(_no_block(cells, factor, level, other))
            continue
        seeds = sorted(set.intersection(*(set(d) for _, d in kept)))
        mean = np.array([np.mean([d[s] for _, d in kept]) for s in seeds])
        if not seeds:
            unanswered.append(f"{level} and {other} have no seed that all their arms ran")
            continue
        enough = mean.size >= st.fewest_seeds(alpha)
        p = st.sign_flip_test(mean, rng) if enough else st.few_seeds_test(mean, floor)
        p_values.append(p)
        interval = st.t_interval(mean, 1 - alpha)
        made.append(
            Contrast(
                level=level,
                other=other,
                blocks=[_block(b, d, cells, place, level, other, alpha) for b, d in kept],
                seeds=len(seeds),
                difference=float(mean.mean()),
                low=interval.low if interval else None,
                high=interval.high if interval else None,
                p_value=None,
                interaction=_interaction([d for _, d in kept], seeds, alpha),
                better=None,
            )
        )
    contrasts = [
        c.model_copy(
            update={
                "p_value": float(p) if c.seeds > 1 else None,
                "better": _better(c, direction) if p <= alpha else None,
            }
        )
        for c, p in zip(made, st.holm(p_values), strict=True)
    ]
    marginal = Marginal(
        factor=factor,
        metric=metric,
        direction=direction,
        levels={name: [c.arm for c in cells if c.level == name] for name in levels},
        contrasts=contrasts,
        unanswered=unanswered,
        answer="",
    )
    return marginal.model_copy(update={"answer": _answer(marginal)})


def _better(c: Contrast, direction: Direction) -> str | None:
    """The better level; None where blocks contradict each other, so that no level is."""
    signs = {np.sign(b.difference) for b in c.blocks}
    if c.interaction and len(signs) > 1:
        return None
    return c.level if (c.difference > 0) == (direction == "maximize") else c.other


def _block(
    block: str,
    differences: Mapping[int, float],
    cells: Sequence[Cell],
    place: Mapping[tuple[str, str], int],
    level: str,
    other: str,
    alpha: float,
) -> BlockContrast:
    d = list(differences.values())
    interval = st.t_interval(d, 1 - alpha)
    return BlockContrast(
        block=block,
        arms=(cells[place[block, level]].arm, cells[place[block, other]].arm),
        difference=float(np.mean(d)),
        low=interval.low if interval else None,
        high=interval.high if interval else None,
    )


def _no_block(cells: Sequence[Cell], factor: str, level: str, other: str) -> str:
    where = {
        name: ", ".join(sorted({c.block for c in cells if c.level == name}))
        for name in (level, other)
    }
    return (
        f"{level} against {other}: no two arms differ in {factor} alone ({level} only with "
        f"{where[level]}; {other} only with {where[other]})"
    )


def _answer(m: Marginal) -> str:
    """The contrasts in plain sentences."""
    if len(m.levels) < 2:
        only = ", ".join(m.levels)
        return f"Every arm has the same {m.factor} ({only}), so there is nothing to compare."
    parts = []
    for c in m.contrasts:
        over = f"{len(c.blocks)} matched pair{'s' if len(c.blocks) > 1 else ''} of arms"
        seeds = f"{c.seeds} common seed{'s' if c.seeds > 1 else ''}"
        if c.better:
            loser = c.other if c.better == c.level else c.level
            low, high = sorted((abs(c.low or 0.0), abs(c.high or 0.0)))
            parts.append(
                f"{c.better} is better than {loser} by {abs(c.difference):.2g} on average "
                f"(interval {low:.2g} to {high:.2g}; {over}, {seeds})."
            )
        elif c.low is None or c.high is None:
            parts.append(f"{c.level} against {c.other}: one seed gives no verdict ({over}).")
        else:
            most = max(abs(c.low), abs(c.high))
            parts.append(
                f"{c.level} against {c.other}: no difference larger than {most:.2g} detected "
                f"({over}, {seeds})."
            )
        if c.interaction:
            told = ", ".join(f"{b.difference:+.2g} with {b.block}" for b in c.blocks)
            parts.append(f"That depends on the rest: {c.level} minus {c.other} is {told}.")
    if m.unanswered:
        parts.append(f"This design cannot answer: {'; '.join(m.unanswered)}.")
    return " ".join(parts)
