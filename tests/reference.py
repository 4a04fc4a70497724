"""What the optimizers are compared with: the papers' formulas in NumPy float64.

A reference is ``formula(p, g, s, t, **settings) -> p``: the whole step including weight decay and
learning rate, with ``s`` a dict that it fills and keeps. The formulas are in
``tests/references/``, a file per family, written from the papers and without a look at the rules
or at torch.
"""

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

Array = np.ndarray
Formula = Callable[..., Array]


def run(formula: Formula, start: Array, grads: Iterable[Array], **settings: Any) -> list[Array]:
    """The parameter after each step."""
    p, s, path = np.array(start, dtype=np.float64), {}, []
    for t, g in enumerate(grads, start=1):
        p = formula(p, np.asarray(g, dtype=np.float64), s, t, **settings)
        path.append(p)
    return path


def relative_error(actual: Array, expected: Array) -> float:
    """The largest difference over the largest value, of arrays of one shape."""
    assert np.shape(actual) == np.shape(expected)
    return float(np.max(np.abs(actual - expected)) / max(np.max(np.abs(expected)), 1e-300))
