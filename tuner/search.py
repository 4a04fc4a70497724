"""The sampler: from what an arm has seen to what it tries next. The only file that imports optuna.

`propose` is a pure function of the history. Nothing is kept between calls, so a resumed study
proposes exactly what an uninterrupted one would have proposed.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tuner.records import Direction
from tuner.space import Dimension, Point, Space

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.trial import FrozenTrial


@dataclass(frozen=True)
class Observation:
    """A point and its result; `value=None` for a run that diverged or failed.

    `pruned_at` is the step at which early stopping ended the run, None for a full run.
    """

    point: Point
    value: float | None
    pruned_at: int | None = None


def propose(
    space: Space,
    seen: Sequence[Observation],
    pending: Sequence[Point],
    direction: Direction,
    index: int,
    startup: int,
    seed: int,
) -> Point:
    """The point of an arm's trial `index`.

    The first `startup` points are a scrambled Sobol sequence; later ones come from Optuna's
    multivariate TPE over `seen`, which keeps away from `pending`. A run without a value is told
    as finite and worse than anything seen: TPE ignores NaN and failed trials and would return to
    the cliff for ever (0.92 of its trials diverged, against 0.32).
    """
    free = tuple(d for d in space if _is_free(d))
    fixed = {d.name: d.values[0] if d.values else d.low for d in space if not _is_free(d)}
    if not free:
        return fixed
    if index < startup:
        return fixed | _sobol(free, index, seed)
    return fixed | _tpe(free, seen, pending, direction, seed * 100_003 + index)


def _is_free(dimension: Dimension) -> bool:
    return len(dimension.values) > 1 if dimension.values else dimension.low < dimension.high


def _sobol(space: Space, index: int, seed: int) -> Point:
    from scipy.stats import qmc

    sampler = qmc.Sobol(len(space), scramble=True, rng=seed)
    with warnings.catch_warnings():
        # Balance needs 2^m points; any prefix still covers the box better than random points.
        warnings.simplefilter("ignore", UserWarning)
        fractions = sampler.random(index + 1)[-1]
    return {d.name: d.at(float(f)) for d, f in zip(space, fractions, strict=True)}


def _distribution(dimension: Dimension) -> BaseDistribution:
    from optuna.distributions import FloatDistribution, IntDistribution

    if dimension.values:
        return IntDistribution(0, int(dimension.end))  # ordered: neighbours are alike
    return FloatDistribution(dimension.start, dimension.end, log=dimension.log)


def finite_values(seen: Sequence[Observation], direction: Direction) -> list[float]:
    """Every observation's value, a missing one replaced by finite and worse than the worst."""
    sign = 1.0 if direction == "minimize" else -1.0
    known = [o.value for o in seen if o.value is not None and math.isfinite(o.value)]
    worst = max((sign * v for v in known), default=0.0)
    best = min((sign * v for v in known), default=0.0)
    missing = sign * (worst + max(worst - best, abs(worst), 1.0))
    return [o.value if o.value is not None and math.isfinite(o.value) else missing for o in seen]


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

    inside = [o for o in seen if all(d.contains(o.point[d.name]) for d in space)]
    study = optuna.create_study(
        direction=direction, sampler=TPESampler(seed=seed % 2**32, n_startup_trials=1)
    )
    for observation, value in zip(inside, finite_values(inside, direction), strict=True):
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
