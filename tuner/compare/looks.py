"""Looking at scores several times without more false alarms than looking once.

Whoever tests after 5, 10, 15 and 20 seeds and stops at the first p below 0.05 is wrong in 13 % of
the studies of equal arms. Pocock's design tests at every look with one smaller level. Here a p
value is translated instead: `overall_p` is the probability that equal arms show a p value this
small at ANY of the planned looks, so that all else keeps comparing with alpha.

Pocock's constants hold for one comparison. The extremes of many pairs of arms recur less from
look to look: with his constants four equal arms were told apart in 6.8 % of 2,000 simulated
studies of four looks. So with more than two arms every look has its share of alpha (Bonferroni).

Sources: Pocock, Biometrika 64 (1977); the recursion is that of Armitage, McPherson and Rowe, JRSS A
132 (1969), as in Jennison and Turnbull, Group Sequential Methods, 2000, chapter 19.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]

_NODES = 64  # of the integration over the values from which one goes on
_SMALLEST_P = 1e-12  # below it the table is not needed


@lru_cache(maxsize=64)
def _crossing(z: float, looks: int) -> float:
    """P(|Z_k| >= z at any of `looks` looks) for sums of `looks` equal, normal increments."""
    from scipy.special import ndtr

    nodes, weights = np.polynomial.legendre.leggauss(_NODES)
    stay = float(ndtr(z) - ndtr(-z))
    # The density of the sum S_k where no look so far crossed: |S_j| < z sqrt(j) for j <= k.
    sums = nodes * z
    density = np.exp(-(sums**2) / 2) / np.sqrt(2 * np.pi)
    for k in range(2, looks + 1):
        mass = weights * z * np.sqrt(k - 1) * density
        bound = z * np.sqrt(k)
        stay = float(mass @ (ndtr(bound - sums) - ndtr(-bound - sums)))
        following = nodes * bound
        steps = np.exp(-((following[:, None] - sums) ** 2) / 2) / np.sqrt(2 * np.pi)
        sums, density = following, steps @ mass
    return 1 - stay


@lru_cache(maxsize=16)
def _table(looks: int) -> tuple[Array, Array]:
    """Rising log p values of one look and those of all looks together."""
    from scipy.special import ndtri

    single = np.geomspace(_SMALLEST_P, 1 - 1e-9, 60)
    overall = [_crossing(float(-ndtri(p / 2)), looks) for p in single]
    return np.log(single), np.log(np.maximum.accumulate(np.clip(overall, single, 1.0)))


def overall_p(p: npt.ArrayLike, looks: int, arms: int = 2) -> Array:
    """The p value that counts all `looks` planned looks, from that of one look (any shape).

    Exact for normal means of two arms and equally spaced looks, an upper bound for more arms.
    Raises ValueError for `looks` below 1.
    """
    if looks < 1:
        raise ValueError(f"looks = {looks}; allowed: at least 1")
    values = np.asarray(p, dtype=float)
    if looks == 1 or arms > 2:
        return np.asarray(np.minimum(1.0, looks * values))
    single, overall = _table(looks)
    logs = np.log(np.clip(values, _SMALLEST_P, 1.0))
    found = np.exp(np.interp(logs, single, overall))
    # Below the table: never more than the looks together can show (Bonferroni).
    return np.asarray(np.where(values < _SMALLEST_P, np.minimum(1, looks * values), found))


def nominal_level(looks: int, alpha: float = 0.05, arms: int = 2) -> float:
    """The level of each of `looks` tests that together err with `alpha`, as in `overall_p`."""
    if looks == 1 or arms > 2:
        return alpha / looks
    single, overall = _table(looks)
    return float(np.exp(np.interp(np.log(alpha), overall, single)))
