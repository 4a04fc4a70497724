"""The ramp: the learning rate rises exponentially, batch by batch, until the loss explodes.

A coarse ramp over many decades finds where training explodes, and starts lower when its first rates
train already. Alone (`quick`) it is followed by a fine ramp over the decades below the explosion.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from tuner.errors import UsageError
from tuner.lr_curve import MIN_POINTS, explosion, shape, starts_too_high, suggest
from tuner.records import LrCurve

Points = list[tuple[float, float]]
Step = Callable[[float], float]
Ramp = Callable[[Iterator[float]], Points]

LOW, HIGH = 1e-8, 1e2
# A ramp that has not exploded goes on to this rate; no useful one is higher.
CEILING = 1e4
STEPS = 150  # of a quick test
COARSE_SHARE = 1 / 3  # of the steps
# Where the fine ramp runs, around the explosion of the coarse one.
DECADES_BELOW, DECADES_ABOVE = 3.5, 0.5
# A ramp that starts too high starts again this much lower, at most so often.
LOWER, RESTARTS = 1e-3, 2


def coarse(
    ramp: Ramp,
    low: float,
    high: float,
    steps: int,
    known_noise: float = 0.0,
    ceiling: float = CEILING,
) -> Points:
    """A ramp of about `steps` batches over the whole range, which extends itself on both sides.

    Upwards it goes to `ceiling` at most.

    Raises UsageError for an empty range.
    """
    if not 0 < low < high:
        raise UsageError(f"low = {low}, high = {high}: expected 0 < low < high")
    points = ramp(ladder(low, high, steps, ceiling))
    for _ in range(RESTARTS):
        if not starts_too_high(points, known_noise):
            break
        low *= LOWER
        points = ramp(ladder(low, high, steps, ceiling))
    return points


def quick(ramp: Ramp, low: float, high: float, steps: int) -> LrCurve:
    """Coarse ramp, fine ramp, suggestion: cheap, and honest about what that is worth.

    Fewer than 36 steps are too few to see anything and become 36. Raises UsageError for an empty
    range.
    """
    steps = max(steps, 3 * MIN_POINTS)
    coarse_steps = round(steps * COARSE_SHARE)
    points = coarse(ramp, low, high, coarse_steps)
    if explosion([loss for _, loss in points]) != 0:
        top = _top(points)
        bottom, above = top / 10**DECADES_BELOW, top * 10**DECADES_ABOVE
        points = coarse(ramp, bottom, above, steps - coarse_steps)
    return suggest(points)


def _top(points: Points) -> float:
    """Where the coarse ramp explodes; without an explosion a decade above its lowest loss."""
    end = explosion([loss for _, loss in points])
    if end is not None:
        return points[end][0]
    curve = shape(points)
    return 10 * float(curve.lrs[curve.lowest])


def ladder(low: float, high: float, steps: int, ceiling: float = CEILING) -> Iterator[float]:
    """Learning rates evenly on the log scale, `steps` from low to high, and on up to `ceiling`."""
    ratio = (high / low) ** (1 / (steps - 1))
    index = 0
    while (lr := low * ratio**index) <= max(high, ceiling) * (1 + 1e-9):
        yield lr
        index += 1


def climb(step: Step, lrs: Iterator[float]) -> Points:
    """Take one step at each learning rate until the loss has exploded."""
    points: Points = []
    for lr in lrs:
        points.append((lr, step(lr)))
        if explosion([loss for _, loss in points]) is not None:
            break
    return points
