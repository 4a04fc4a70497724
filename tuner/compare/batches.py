"""What the batch size does, from a search that chose it freely.

Batch size is an axis of the search and not an arm, so its levels were not given equal trials: the
sampler left the sizes that looked bad early. The best trial of each size would favour the size that
was tried most. So each size is judged by the *expected best of k* of its trials, with the same k
for all sizes of an arm: the number that the least tried size has. All of them are single seeds, so
all are optimistic, and about equally so at equal k; the confirmed mean beside it is not.

Batch size is also a cost: the same is shown after equal examples and after equal seconds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from tuner.compare import statistics as st
from tuner.records import Direction, Record

DRAWS = 2_000


class Tried(NamedTuple):
    """One full-length exploration trial; value None = diverged."""

    batch_size: int
    value: float | None
    curve: Sequence[tuple[float, float, float]]  # (examples, seconds, metric) at each evaluation


class BatchLevel(Record):
    """One batch size of one arm; values in metric units.

    Attributes:
        best, low, high: expected best of `BatchArm.equal_trials` trials at the end of their runs.
        at_examples, at_seconds: the same after equal examples and equal seconds (see `BatchArm`);
            before the end of its schedule where `truncated`, which costs a decaying schedule.
        p_best: share of the bootstrap in which this size is the best at the end of its runs.
        confirmed: mean over fresh seeds of its confirmed configurations; None without.
    """

    batch_size: int
    trials: int
    diverged: int
    best: float | None
    low: float | None
    high: float | None
    p_best: float | None
    at_examples: float | None
    at_seconds: float | None
    truncated: list[str]  # of "examples", "seconds"
    confirmed: float | None
    confirmed_runs: int


class BatchArm(Record):
    """The batch sizes of one arm; examples and seconds: where sizes are compared at equal cost."""

    arm: str
    equal_trials: int
    examples: float | None
    seconds: float | None
    levels: list[BatchLevel]
    answer: str


def expected_best(values: Sequence[float], k: int, direction: Direction) -> float:
    """Expected best of k of the values, drawn without replacement."""
    return float(st.expected_best_of_k(values, direction)[k - 1])


def _at(curve: Sequence[tuple[float, float, float]], column: int, limit: float) -> float | None:
    """The metric at the last evaluation within the limit of a cost."""
    inside = [row[2] for row in curve if row[column] <= limit * (1 + 1e-9)]
    return inside[-1] if inside else None


def _bootstrap(
    groups: Sequence[st.Array], k: int, direction: Direction, rng: np.random.Generator
) -> st.Array:
    """Expected best of k for each group's trials drawn anew; (draws, groups)."""
    sign = 1.0 if direction == "maximize" else -1.0
    columns = []
    for values in groups:
        n = values.size
        weights = st.expected_best_weights(n)[k - 1]
        drawn = np.sort(sign * rng.choice(values, size=(DRAWS, n)), axis=1)
        columns.append(sign * drawn @ weights)
    return np.stack(columns, axis=1)


def batch_arm(
    arm: str,
    trials: Sequence[Tried],
    confirmed: Mapping[int, Sequence[float]],
    direction: Direction,
    rng: np.random.Generator,
    level: float = 0.95,
) -> BatchArm:
    """Compare the batch sizes that one arm's exploration tried.

    `confirmed` holds scores on fresh seeds by batch size. Raises ValueError for NaN or infinity.
    """
    sizes = sorted({t.batch_size for t in trials})
    by_size = {b: [t for t in trials if t.batch_size == b] for b in sizes}
    finished = [t for t in trials if t.value is not None]
    if not finished:
        text = f"{arm}: no exploration trial was completed, so nothing can be said."
        return BatchArm(
            arm=arm, equal_trials=0, examples=None, seconds=None, levels=[], answer=text
        )
    filled = st.finite_worst([[t.value for t in by_size[b]] for b in sizes], direction)
    scores = dict(zip(sizes, filled, strict=True))
    k = min(len(v) for v in scores.values())
    draws = _bootstrap([np.array(scores[b]) for b in sizes], k, direction, rng)
    sign = 1.0 if direction == "maximize" else -1.0
    shares = st.p_best(sign * draws)
    tail = (1 - level) / 2
    bounds = np.quantile(draws, [tail, 1 - tail], axis=0)
    ends = {b: [t.curve[-1] for t in by_size[b] if t.curve] for b in sizes}
    limits: list[float | None] = [
        min(max(row[c] for row in ends[b]) for b in sizes) if all(ends.values()) else None
        for c in (0, 1)
    ]
    levels = []
    for place, b in enumerate(sizes):
        some = len(scores[b]) >= 2
        equal: list[float | None] = []
        truncated = []
        for column, (name, limit) in enumerate(zip(("examples", "seconds"), limits, strict=True)):
            reached = [
                value
                for t in by_size[b]
                if limit is not None and (value := _at(t.curve, column, limit)) is not None
            ]
            equal.append(
                expected_best(reached, min(k, len(reached)), direction) if reached else None
            )
            if limit is not None and max(row[column] for row in ends[b]) > limit * 1.01:
                truncated.append(name)
        levels.append(
            BatchLevel(
                batch_size=b,
                trials=len(scores[b]),
                diverged=sum(t.value is None for t in by_size[b]),
                best=expected_best(scores[b], k, direction),
                low=float(bounds[0, place]) if some else None,
                high=float(bounds[1, place]) if some else None,
                p_best=float(shares[place]) if len(sizes) > 1 else None,
                at_examples=equal[0],
                at_seconds=equal[1],
                truncated=truncated,
                confirmed=float(np.mean(confirmed[b])) if confirmed.get(b) else None,
                confirmed_runs=len(confirmed.get(b, ())),
            )
        )
    return BatchArm(
        arm=arm,
        equal_trials=k,
        examples=limits[0],
        seconds=limits[1],
        levels=levels,
        answer=_answer(arm, levels, k, direction),
    )


def _answer(arm: str, levels: Sequence[BatchLevel], k: int, direction: Direction) -> str:
    if len(levels) < 2:
        return (
            f"{arm}: its trials all have batch size {levels[0].batch_size}, so this study cannot "
            "say what another one would do."
        )
    rare = [str(b.batch_size) for b in levels if b.trials < 2]
    if rare:
        return (
            f"{arm}: batch size {', '.join(rare)} was tried once, and one trial gives no verdict; "
            "this study cannot rank its batch sizes."
        )
    sign = 1.0 if direction == "maximize" else -1.0
    top = max(levels, key=lambda b: sign * (b.best or 0.0))
    said = f"{arm}: at {k} trials each, batch size {top.batch_size} gives the best ({top.best:.4g})"
    sure = top.p_best or 0.0
    if sure >= 0.95:
        return f"{said}; in {sure:.0%} of resampled searches it stays the best."
    others = ", ".join(
        f"{b.batch_size} ({b.best:.4g})" for b in levels if b.batch_size != top.batch_size
    )
    return (
        f"{said}, not told apart from {others}: in {1 - sure:.0%} of resampled searches another "
        "size is the best."
    )
