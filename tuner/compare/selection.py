"""Luck in the search: what an arm loses when its search and selection are done again.

The first level of the two-level bootstrap. A comparison of chosen configurations alone takes the
search for granted; another search of the same kind might not have met the lucky trial
(Bouthillier et al., arXiv:2103.03098: the choice of hyperparameters varies as much as the seed).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from tuner.compare import statistics as st

DRAWS = 4_000


def point_qualities(
    values: st.Array, confirmed: Mapping[int, npt.ArrayLike], seed_sd: float
) -> st.Array:
    """What each tried configuration is worth, its luck taken off; (trials,), more is better.

    Those confirmed on fresh seeds: their mean there, shrunk towards the mean of all confirmed as
    far as the seed deviation explains their spread (James and Stein). The others: their one score,
    shrunk the same way towards the mean of all trials, and moved by what the confirmed ones lost
    on average from exploration to confirmation (the winner's curse).
    """
    spread = float(values.var(ddof=1)) if values.size > 1 else 0.0
    reliability = max(0.0, 1 - seed_sd**2 / spread) if spread > 0 else 0.0
    quality = values.mean() + reliability * (values - values.mean())
    if confirmed:
        places = sorted(confirmed)
        means = np.array([np.mean(np.asarray(confirmed[p], dtype=float)) for p in places])
        runs = np.array([np.size(confirmed[p]) for p in places])
        between = float(means.var(ddof=1)) if means.size > 1 else 0.0
        noise = seed_sd**2 / runs
        kept = np.maximum(0.0, 1 - noise / between) if between > 0 else np.zeros(means.size)
        shrunk = means.mean() + kept * (means - means.mean())
        quality = quality + float(np.mean(shrunk - quality[places]))
        quality[places] = shrunk
    return np.asarray(quality)


def search_loss(
    values: npt.ArrayLike,
    confirmed: Mapping[int, npt.ArrayLike],
    *,
    top: int,
    seeds: int,
    seed_sd: float,
    rng: np.random.Generator,
    chosen: int | None = None,
    draws: int = DRAWS,
) -> st.Array:
    """What the arm loses against its chosen configuration in each repeat of the search; (draws,).

    Trials are drawn anew with replacement; the `top` best of those drawn are confirmed anew on
    `seeds` seeds with the seed deviation `seed_sd`, and the best mean is chosen.

    Args:
        values: the exploration's scores, more is better, one for each configuration.
        confirmed: scores of confirmation by index of `values`, where there are any.
        chosen: index of the configuration that was chosen; None = the best value.
    """
    v = np.asarray(values, dtype=float)
    if not v.size:
        return np.zeros(draws)
    quality = point_qualities(v, confirmed, seed_sd)
    best_first = np.argsort(-v, kind="stable")
    drawn = rng.integers(0, v.size, size=(draws, v.size))
    present = np.zeros((draws, v.size), dtype=bool)
    present[np.arange(draws)[:, None], drawn] = True
    ranked = present[:, best_first]
    candidate = ranked & (np.cumsum(ranked, axis=1) <= max(top, 1))
    noise = rng.standard_normal((draws, v.size)) * (seed_sd / np.sqrt(max(seeds, 1)))
    seen = quality[best_first] + (noise if top > 1 else 0.0)
    picked = best_first[np.where(candidate, seen, -np.inf).argmax(axis=1)]
    held = int(best_first[0]) if chosen is None else chosen
    return np.asarray(quality[held] - quality[picked])


def search_losses(
    searches: Sequence[tuple[npt.ArrayLike, Mapping[int, npt.ArrayLike], int | None]],
    *,
    top: int,
    seeds: int,
    seed_sd: float,
    rng: np.random.Generator,
) -> st.Array | None:
    """`search_loss` of every arm, (draws, arms); None unless every arm tells its search."""
    if not all(np.size(values) for values, _, _ in searches):
        return None
    return np.stack(
        [
            search_loss(
                values, confirmed, top=top, seeds=seeds, seed_sd=seed_sd, rng=rng, chosen=chosen
            )
            for values, confirmed, chosen in searches
        ],
        axis=1,
    )
