"""The sampler: from what an arm has seen to what it tries next. The only file that imports optuna.

`propose` and `estimates` are pure functions of the history. Nothing is kept between calls, so a
resumed study proposes exactly what an uninterrupted one would have proposed.
"""

from __future__ import annotations

import math
import statistics
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from tuner.observed import Observation, Warp, finite_values
from tuner.records import Direction
from tuner.space import Dimension, Point, Space

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.trial import FrozenTrial

    from tuner.surrogate import Surrogate

Array = NDArray[np.float64]

MOST = 150  # runs that the surrogate sees; its cost grows with their cube
_FEWEST = 3  # runs that a surrogate needs
_COVERING, _AROUND, _LEADERS = 256, 48, 5  # candidates: everywhere, and around each of the best
_STEPS = (0.05, 0.2)  # how far around, in units of the box
_AS_GOOD = 0.8  # of the largest expected improvement: of these the most central is taken
_UNUSUAL = 0.25  # of the quasi-random points are free of an axis' usual value
_LEVEL = 0.3  # of failures, below which a place works: with half, half of the runs go too far


@dataclass(frozen=True)
class Estimate:
    """What a full run at a point is expected to give over seeds, `low` to `high` with 95 %.

    None for the bounds where runs are too few, or too many, for the surrogate.
    """

    point: Point
    value: float
    low: float | None = None
    high: float | None = None


def propose(
    space: Space,
    seen: Sequence[Observation],
    pending: Sequence[Point],
    direction: Direction,
    index: int,
    startup: int,
    seed: int,
    length: float = 1.0,
) -> Point:
    """The point of an arm's trial `index`, a run of `length` of a full trial.

    The first `startup` points are a scrambled Sobol sequence. Later ones maximise the expected
    improvement under a Gaussian process with seed noise (`tuner.surrogate`), which keeps away from
    `pending`, times the chance that a run there ends with a value; beyond `MOST` runs they come
    from Optuna's multivariate TPE. That is told of a run without a value as finite and worse than
    anything seen: a sampler that does not see it returns to the cliff for ever (0.92 of TPE's
    trials diverged, against 0.32).
    """
    free = tuple(d for d in space if _is_free(d))
    fixed = {d.name: d.values[0] if d.values else d.low for d in space if not _is_free(d)}
    if not free:
        return fixed
    inside = [o for o in seen if _contains(free, o.point)]
    if index < startup or len(inside) < _FEWEST:
        return fixed | _sobol(free, index, seed)
    if len(inside) > MOST:
        return fixed | _tpe(free, inside, pending, direction, seed * 100_003 + index)
    rng = np.random.default_rng([seed, index])
    return fixed | _improve(free, inside, pending, direction, length, rng)


def estimates(
    space: Space, seen: Sequence[Observation], direction: Direction, length: float = 1.0
) -> list[Estimate]:
    """The distinct points, by what a full run on a further seed is expected to give, best first.

    Those that ran for at least `length` of a full trial.

    One seed's score is its configuration's mean plus luck, and the best of many scores is mostly
    lucky. So neighbours are asked too: the estimate is the surrogate's, or the mean of its runs for
    a point outside of the box and while there are too few runs for a surrogate. A point with a run
    that diverged or failed is as good as that run. Runs that were stopped early take no part: what
    they would have given is not known, and near the best most of them would have been good.
    """
    seen = [o for o in seen if o.pruned_at is None]
    sign = 1.0 if direction == "minimize" else -1.0
    points: list[Point] = []
    for o in seen:
        if o.value is not None and o.length >= length and o.point not in points:
            points.append(o.point)
    told = finite_values(seen, direction)
    found = [
        Estimate(p, statistics.fmean(v for o, v in zip(seen, told, strict=True) if o.point == p))
        for p in points
    ]
    ranks = [sign * e.value for e in found]
    free = tuple(d for d in space if _is_free(d))
    inside = [o for o in seen if _contains(free, o.point)]
    known = [k for k, p in enumerate(points) if _contains(free, p)]
    if free and known and _FEWEST <= len(inside) <= MOST:
        warp = Warp.of(inside, sign)
        model = _model(free, inside, warp)
        smoothed = model.predict(_places(free, [points[k] for k in known]))
        failed = [o.point for o in seen if o.value is None]
        for k, mean, deviation in zip(known, *smoothed, strict=True):
            if points[k] not in failed:
                value, low, high = warp.mean(float(mean), float(deviation), model.noise)
                low, high = sorted((sign * low, sign * high))
                found[k] = Estimate(points[k], sign * value, low, high)
                ranks[k] = warp.back(float(mean))
    return [found[k] for k in sorted(range(len(found)), key=ranks.__getitem__)]


def promising(
    space: Space, seen: Sequence[Observation], direction: Direction, count: int
) -> list[Point]:
    """Which points that had short runs alone to run at full length.

    Each is the one from which the surrogate expects the largest improvement, those before it taken
    to give what is expected of them: neighbours would tell the same twice. By their estimates when
    there are too few runs for a surrogate, or too many. Remembered, since every plan asks again.
    """
    names = [d.name for d in space]
    rows = tuple(
        (tuple(o.point[name] for name in names), o.value, o.pruned_at, o.length) for o in seen
    )
    found = _promising(space, rows, direction, count)
    return [dict(zip(names, values, strict=True)) for values in found]


_Row = tuple[tuple[float, ...], float | None, int | None, float]


@lru_cache(maxsize=64)
def _promising(
    space: Space, rows: tuple[_Row, ...], direction: Direction, count: int
) -> list[tuple[float, ...]]:
    names = [d.name for d in space]
    seen = [Observation(dict(zip(names, row[0], strict=True)), *row[1:]) for row in rows]
    full = [o.point for o in seen if o.length == 1]
    left = [e.point for e in estimates(space, seen, direction, 0.0) if e.point not in full]
    free = tuple(d for d in space if _is_free(d))
    inside = [o for o in seen if _contains(free, o.point) and o.value is not None]
    if not free or not _FEWEST <= len(inside) <= MOST:
        return [tuple(point.values()) for point in left[:count]]
    found: list[Point] = []
    while left and len(found) < count:
        model, known = _believing(free, inside, found, direction)
        best = float(model.predict(known)[0].min())
        gains = model.expected_improvement(_places(free, left), best)
        found.append(left.pop(int(np.argmax(gains))))
    return [tuple(point.values()) for point in found]


def _is_free(dimension: Dimension) -> bool:
    return len(dimension.values) > 1 if dimension.values else dimension.low < dimension.high


def _contains(space: Space, point: Point) -> bool:
    return all(d.contains(point[d.name]) for d in space)


def _sobol(space: Space, index: int, seed: int) -> Point:
    place = _covering(space, index + 1, np.random.default_rng(seed))[-1]
    return {d.name: _start_at(d, float(f)) for d, f in zip(space, place, strict=True)}


def _start_at(axis: Dimension, fraction: float) -> float:
    if axis.usual is None:
        return axis.at(fraction)
    return axis.usual if fraction >= _UNUSUAL else axis.at(fraction / _UNUSUAL)


def _covering(space: Space, count: int, rng: np.random.Generator) -> Array:
    """The first places of a scrambled Sobol sequence."""
    from scipy.stats import qmc

    with warnings.catch_warnings():
        # Balance needs 2^m points; any prefix still covers the box better than random points.
        warnings.simplefilter("ignore", UserWarning)
        places: Array = qmc.Sobol(len(space), scramble=True, rng=rng).random(count)
    return places


def _point(space: Space, place: Array) -> Point:
    return {d.name: d.at(float(f)) for d, f in zip(space, place, strict=True)}


def _places(space: Space, points: Sequence[Point]) -> Array:
    """Where points lie in the unit cube, shape (points, axes)."""
    return np.array([[d.fraction(p[d.name]) for d in space] for p in points], dtype=np.float64)


def _snapped(space: Space, fractions: Array) -> Array:
    """`_places` of the points at these fractions, which differ where an axis lists its values."""
    places = fractions.copy()
    for axis, column in zip(space, places.T, strict=True):
        if axis.values:
            column[:] = [axis.fraction(axis.at(float(f))) for f in column]
    return places


def _model(space: Space, seen: Sequence[Observation], warp: Warp) -> Surrogate:
    from tuner.surrogate import fit

    shorts = np.array([1.0 - o.length for o in seen])
    gradual = tuple(k for k, axis in enumerate(space) if axis.gradual)
    return fit(_places(space, [o.point for o in seen]), warp(seen), shorts, gradual)


def _improve(
    space: Space,
    seen: Sequence[Observation],
    pending: Sequence[Point],
    direction: Direction,
    length: float,
    rng: np.random.Generator,
) -> Point:
    """The candidate from which the surrogate expects the largest improvement."""
    failed = [o.value is None or not math.isfinite(o.value) for o in seen]
    lived = [o for o, lost in zip(seen, failed, strict=True) if not lost]
    works = _chance_of_a_value(space, seen, failed)
    if len(lived) >= _FEWEST:  # else they are told as bad values: nothing else is known
        seen = lived
    model, places = _believing(space, seen, pending, direction)
    means, _ = model.predict(places)
    leaders = places[np.argsort(means)[:_LEADERS]]
    moved = np.repeat(leaders, _AROUND, axis=0)
    widths = np.resize(_STEPS, len(moved))[:, None]
    moved = moved + widths * rng.normal(size=moved.shape)
    moved = 1 - np.abs(1 - np.abs(moved))  # reflected: clipped ones would crowd the edges
    everywhere = _covering(space, _COVERING, rng)
    drawn = np.clip(np.concatenate([everywhere, moved]), 0.0, 1.0 - 1e-9)
    tried = _snapped(space, drawn)
    gains = model.expected_improvement(tried, float(means.min()), 1 - length) * works(tried)
    # An axis that does not matter must not end on its bounds, where the model knows least.
    central = -np.abs(tried - 0.5).max(axis=1)
    central[gains < _AS_GOOD * gains.max()] = -np.inf
    return _point(space, drawn[int(np.argmax(central))])


def _believing(
    space: Space, seen: Sequence[Observation], pending: Sequence[Point], direction: Direction
) -> tuple[Surrogate, Array]:
    """The model of what was seen, and the places that it knows.

    A pending run is taken to give what is expected of it, so that nobody runs beside it.
    """
    warp = Warp.of(seen, 1.0 if direction == "minimize" else -1.0)
    model = _model(space, seen, warp)
    running = [p for p in pending if _contains(space, p)]
    if running:
        expected, _ = model.predict(_places(space, running))
        values = [warp.sign * warp.back(float(z)) for z in expected]
        seen = [*seen, *(Observation(p, v) for p, v in zip(running, values, strict=True))]
        model = _model(space, seen, warp)
    return model, _places(space, [o.point for o in seen])


def _chance_of_a_value(
    space: Space, seen: Sequence[Observation], failed: Sequence[bool]
) -> Callable[[Array], Array]:
    """How likely a run at each place is to end with a value: a model of its own.

    As a bad value among the others, a cliff would bend the model of the good ones near it, and the
    best learning rate is often just below.
    """
    if not any(failed):
        return lambda places: np.ones(len(places))
    from scipy.special import ndtr

    from tuner.surrogate import fit

    model = fit(
        _places(space, [o.point for o in seen]),
        np.array(failed, dtype=np.float64),
        np.zeros(len(seen)),
    )

    def chance(places: Array) -> Array:
        mean, deviation = model.predict(places)
        found: Array = ndtr((_LEVEL - mean) / deviation)
        return found

    return chance


def _distribution(dimension: Dimension) -> BaseDistribution:
    from optuna.distributions import FloatDistribution, IntDistribution

    if dimension.values:
        return IntDistribution(0, int(dimension.end))  # ordered: neighbours are alike
    return FloatDistribution(dimension.start, dimension.end, log=dimension.log)


def _tpe(
    space: Space,
    seen: Sequence[Observation],
    pending: Sequence[Point],
    direction: Direction,
    seed: int,
) -> Point:
    import optuna
    from optuna.samplers import TPESampler
    from optuna.trial import TrialState, create_trial

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    distributions = {d.name: _distribution(d) for d in space}

    def frozen(point: Point, **result: object) -> FrozenTrial:
        params = {d.name: d.coordinate(point[d.name]) for d in space}
        return create_trial(params=params, distributions=distributions, **result)  # type: ignore[arg-type]

    study = optuna.create_study(
        direction=direction, sampler=TPESampler(seed=seed % 2**32, n_startup_trials=1)
    )
    for observation, value in zip(seen, finite_values(seen, direction), strict=True):
        if observation.pruned_at is None:
            study.add_trial(frozen(observation.point, state=TrialState.COMPLETE, value=value))
        else:
            study.add_trial(
                frozen(
                    observation.point,
                    state=TrialState.PRUNED,
                    intermediate_values={observation.pruned_at: value},
                )
            )
    for point in pending:
        study.add_trial(frozen(point, state=TrialState.RUNNING))
    proposal = study.ask(distributions).params
    return {d.name: d.value(proposal[d.name]) for d in space}
