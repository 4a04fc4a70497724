"""How an optimizer's update follows the gradient and the learning rate: measured, not looked up.

The best rate of a run depends on its length in a way that the gradient decides. An update of fixed
length (a sign, a trust ratio, an orthogonal matrix) has to shrink with the run or it never settles;
one that follows the gradient shrinks by itself. A relative step, as Adafactor's, follows the rate
only up to a cap.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

from torch import Tensor

# Steps with a smaller gradient: longer than momentum remembers, shorter than second moments do.
REPLAYS = 30
SCALE = 0.1
# Moves whose lengths differ by less than this share are equal but for rounding.
EQUAL = 1e-6
CAP_RESOLUTION = 0.05  # decades

Gradients = list[Tensor | None]


def response(
    params: Iterable[Tensor], step: Callable[[], None], restart: Callable[[], Gradients]
) -> float:
    """1 if a tenth of the gradient moves the parameters by a tenth, 0 if by as much as before.

    Args:
        params: the parameters that are looked at.
        step: one optimizer step with the gradients that are there.
        restart: back to the snapshot; returns a gradient for each of the parameters.
    """
    params = list(params)
    full, small = (_last_move(params, step, restart, scale) for scale in (1.0, SCALE))
    if not (0 < full < math.inf and 0 < small < math.inf):
        return 0.5
    return min(max(math.log(small / full) / math.log(SCALE), 0.0), 1.0)


def cap(
    params: Iterable[Tensor],
    step: Callable[[], None],
    restart: Callable[[float], Gradients],
    low: float,
    high: float,
) -> float:
    """The learning rate above which a step moves the parameters no further; inf if there is none.

    Args:
        params: the parameters that are looked at.
        step: one optimizer step with the gradients that are there.
        restart: back to the snapshot, at a learning rate; returns a gradient for each parameter.
        low, high: rates between which it is looked for.
    """
    params = list(params)

    def move(log_lr: float) -> float:
        return _last_move(params, step, lambda: restart(10**log_lr), 1.0, 1)

    below, above = math.log10(low), math.log10(high)
    most = move(above)
    if not 0 < most < math.inf:
        return math.inf

    def is_capped(log_lr: float) -> bool:
        return math.isclose(move(log_lr), most, rel_tol=EQUAL)

    if is_capped(below) or not is_capped(above - 1):  # Prodigy's factor acts a step later
        return math.inf
    while above - below > CAP_RESOLUTION:
        middle = (below + above) / 2
        below, above = (below, middle) if is_capped(middle) else (middle, above)
    return float(10**above)


def _last_move(
    params: list[Tensor],
    step: Callable[[], None],
    restart: Callable[[], Gradients],
    scale: float,
    steps: int = REPLAYS,
) -> float:
    """Length of the last of `steps` steps with the same gradient, times `scale`."""
    gradients = restart()
    before: list[Tensor] = []
    for _ in range(steps):
        before = [param.detach().clone() for param in params]
        for param, gradient in zip(params, gradients, strict=True):
            param.grad = None if gradient is None else scale * gradient
        step()
    moves = [float((p.detach() - b).double().norm()) for p, b in zip(params, before, strict=True)]
    return math.hypot(*moves)
