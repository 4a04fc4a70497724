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
import numpy.typing as npt

from tuner.compare import statistics as st
from tuner.records import Direction, Record

DRAWS = 2_000
ALPHA = 0.05


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
        p_value: of the permutation test against the best size, corrected; None for that size itself
            and for a size tried once.
        confirmed: mean over fresh seeds of its confirmed configurations; None without.
    """

    batch_size: int
    trials: int
    diverged: int
    best: float | None
    low: float | None
    high: float | None
    p_value: float | None
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


def expected_best(values: npt.ArrayLike, k: int, direction: Direction) -> float:
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
        weights = st.expected_best_weights(n)[min(k, n) - 1]
        drawn = np.sort(sign * rng.choice(values, size=(DRAWS, n)), axis=1)
        columns.append(sign * drawn @ weights)
    return np.stack(columns, axis=1)


def _tests(
    groups: Mapping[int, st.Array], k: int, direction: Direction, rng: np.random.Generator
) -> dict[int, float]:
    """Two-sided permutation p values of each size against the best one, corrected by Holm."""
    if len(groups) < 2:
        return {}
    sign = 1.0 if direction == "maximize" else -1.0
    best = {b: sign * expected_best(v, k, direction) for b, v in groups.items()}
    top = max(best, key=lambda b: best[b])
    others = [b for b in groups if b != top]
    p_values = []
    for b in others:
        pool = sign * np.concatenate([groups[top], groups[b]])
        n, m = groups[top].size, groups[b].size
        mixed = rng.permuted(np.tile(pool, (DRAWS, 1)), axis=1)
        first = np.sort(mixed[:, :n], axis=1) @ st.expected_best_weights(n)[k - 1]
        second = np.sort(mixed[:, n:], axis=1) @ st.expected_best_weights(m)[k - 1]
        observed = best[top] - best[b]
        extreme = np.abs(first - second) >= observed - 1e-9 * np.abs(pool).sum()
        p_values.append((1 + extreme.sum()) / (1 + DRAWS))
    return dict(zip(others, map(float, st.holm(p_values)), strict=True))


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
    scores = dict(zip(sizes, map(np.array, filled), strict=True))
    counted = [b for b in sizes if scores[b].size >= 2]
    k = min((scores[b].size for b in counted), default=1)
    draws = _bootstrap([scores[b] for b in sizes], k, direction, rng)
    tail = (1 - level) / 2
    bounds = np.quantile(draws, [tail, 1 - tail], axis=0)
    p_values = _tests({b: scores[b] for b in counted}, k, direction, rng)
    ends = {b: [t.curve[-1] for t in by_size[b] if t.curve] for b in sizes}
    limits: list[float | None] = [
        min(max(row[c] for row in ends[b]) for b in sizes) if all(ends.values()) else None
        for c in (0, 1)
    ]
    levels = []
    for place, b in enumerate(sizes):
        some = b in counted
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
                trials=int(scores[b].size),
                diverged=sum(t.value is None for t in by_size[b]),
                best=expected_best(scores[b], min(k, scores[b].size), direction),
                low=float(bounds[0, place]) if some else None,
                high=float(bounds[1, place]) if some else None,
                p_value=p_values.get(b),
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
    once = [str(b.batch_size) for b in levels if b.trials < 2]
    rest = f" Tried once, which gives no verdict: {', '.join(once)}." if once else ""
    counted = [b for b in levels if b.trials >= 2]
    if len(counted) < 2:
        return f"{arm}: this study cannot rank its batch sizes.{rest}"
    sign = 1.0 if direction == "maximize" else -1.0
    top = max(counted, key=lambda b: sign * (b.best or 0.0))
    parts = [f"{arm}: at {k} trials each, batch size {top.batch_size} leads ({top.best:.4g})."]
    worse = [b for b in counted if b.p_value is not None and b.p_value <= ALPHA]
    close = [b for b in counted if b.p_value is not None and b.p_value > ALPHA]
    for group, words in ((worse, "Worse"), (close, "Not told apart from it")):
        if group:
            told = ", ".join(f"{b.batch_size} ({b.best:.4g})" for b in group)
            parts.append(f"{words}: {told}.")
    return " ".join(parts) + rest


class BatchRow(Record):
    """All arms at one batch size: expected best of `trials` trials each; None = fewer than two."""

    batch_size: int
    trials: int
    best: dict[str, float | None]
    leader: str | None


def across_arms(arms: Mapping[str, Sequence[Tried]], direction: Direction) -> list[BatchRow]:
    """The arms side by side at each batch size, at equal trials within the size."""
    names = list(arms)
    flat = [t for name in names for t in arms[name]]
    if not any(t.value is not None for t in flat):
        return []
    filled = st.finite_worst([[t.value for t in arms[name]] for name in names], direction)
    sign = 1.0 if direction == "maximize" else -1.0
    rows = []
    for b in sorted({t.batch_size for t in flat}):
        found = {
            name: [v for t, v in zip(arms[name], values, strict=True) if t.batch_size == b]
            for name, values in zip(names, filled, strict=True)
        }
        k = min((len(v) for v in found.values() if len(v) >= 2), default=0)
        best = {
            n: expected_best(v, k, direction) if len(v) >= 2 else None for n, v in found.items()
        }
        known = {n: v for n, v in best.items() if v is not None}
        top = [n for n, v in known.items() if sign * v == max(sign * w for w in known.values())]
        leader = top[0] if len(known) > 1 and len(top) == 1 else None
        rows.append(BatchRow(batch_size=b, trials=k, best=best, leader=leader))
    return rows


def across_answer(rows: Sequence[BatchRow]) -> str:
    """Whether the same arm leads at every batch size."""
    led = [r for r in rows if r.leader]
    leaders = {r.leader for r in led}
    if len(led) < 2:
        return "Fewer than two batch sizes have two trials of two arms: no statement across arms."
    if len(leaders) == 1:
        return f"{led[0].leader} leads at every batch size at which two arms can be compared."
    told = ", ".join(f"{r.leader} at {r.batch_size}" for r in led)
    return f"Not the same arm leads at every batch size: {told} (single seeds, equal trials)."
