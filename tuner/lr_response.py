"""How far an optimizer's update follows the length of the gradient: measured, not looked up.

The best rate of a run depends on its length in a way that this decides. An update of fixed length
(a sign, a trust ratio, an orthogonal matrix) has to shrink with the run or it never settles; one
that follows the gradient shrinks by itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

from torch import Tensor

# Steps with a smaller gradient: longer than momentum remembers, shorter than second moments do.
REPLAYS = 30
SCALE = 0.1

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


def _last_move(
    params: list[Tensor],
    step: Callable[[], None],
    restart: Callable[[], Gradients],
    scale: float,
) -> float:
    """Length of the last of REPLAYS steps with the same gradient, times `scale`."""
    gradients = restart()
    before: list[Tensor] = []
    for _ in range(REPLAYS):
        before = [param.detach().clone() for param in params]
        for param, gradient in zip(params, gradients, strict=True):
            param.grad = None if gradient is None else scale * gradient
        step()
    moves = [float((p.detach() - b).double().norm()) for p, b in zip(params, before, strict=True)]
    return math.hypot(*moves)
