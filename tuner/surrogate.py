"""A model of what an arm has seen: Gaussian process regression with seed noise and run length.

Averaged over hyperparameters instead of fitted to them (Osborne et al. 2009; Snoek et al. 2012,
arXiv:1206.2944): with a dozen noisy runs a fitted length scale is a guess, and the guess decides
where the search goes. A run that is shorter than a full one differs from it by a constant and by a
smoother function of its own, both of which vanish at full length (Kennedy and O'Hagan 2000). Of
numbers that act the more the longer a run is, above all weight decay, it tells next to nothing: the
constant is another one at every place of their axes (`gradual`).

Pure functions of arrays: the same observations give the same model.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, ndtri

Array = NDArray[np.float64]

SAMPLES = 64  # of the hyperparameters, from their prior
KEPT = 12  # the most likely of them, by their evidence
# Priors, as (median, standard deviation of the logarithm).
LENGTH_SCALE = (0.6, 0.7)  # in units of the box
NOISE = (0.2, 0.8)  # standard deviation, relative to the function's
SHORT = (0.5, 0.6)  # of what a short run adds, relative to the function's
LEVEL = 2.0  # of the unknown constants, relative to the function's
PRIOR = 1 + LEVEL**2  # variance of a full run's mean, relative to the function's
# Inverse gamma prior of the function's variance.
SHAPE, SCALE = 2.0, 1.0


@dataclass(frozen=True)
class Surrogate:
    """The posterior after some runs: a mixture over hyperparameters.

    Attributes:
        places: of the runs in the unit cube, shape (n, d).
        shorts: 0 for a full run, towards 1 the shorter it was, shape (n,).
        gradual: the axes of which short runs do not tell.
        settings: the hyperparameters kept, shape (k, d + 2): length scales, noise, SHORT.
        weights: their posterior probabilities, shape (k,).
        factors: Cholesky factors of their covariances, shape (k, n, n).
        alphas: covariance⁻¹ · values, shape (k, n).
        scales: the function's posterior standard deviation, shape (k,).
    """

    places: Array
    shorts: Array
    gradual: tuple[int, ...]
    settings: Array
    weights: Array
    factors: Array
    alphas: Array
    scales: Array
    center: float
    spread: float

    @property
    def noise(self) -> float:
        """The standard deviation of one full run around its expected value."""
        variances = (self.settings[:, -2] * self.scales) ** 2
        return self.spread * float(np.sqrt(self.weights @ variances))

    def predict(self, places: Array) -> tuple[Array, Array]:
        """Mean and standard deviation of a full run's expected value, each of shape (m,)."""
        means, deviations = self._each(places)
        mean = self.weights @ means
        second = self.weights @ (deviations**2 + means**2)
        return mean, np.sqrt(np.maximum(second - mean**2, 1e-12))

    def expected_improvement(self, places: Array, best: float, short: float = 0.0) -> Array:
        """How far a full run's mean will lie below `best` once a run there is seen, shape (m,).

        Not by what is unknown of the place but by what the run can tell: one more run has its seed
        noise, and a run shorter than a full one (`short`) tells of that only what they share. So
        a place that was seen is seen again only when that is worth more than another.
        """
        means, told = self._each(places, short)
        z = (best - means) / told
        density = np.exp(-0.5 * z**2) / np.sqrt(2 * np.pi)
        gains: Array = self.weights @ (told * (z * ndtr(z) + density))
        return gains

    def _each(self, places: Array, short: float | None = None) -> tuple[Array, Array]:
        """Means and deviations under each of the hyperparameters, shape (k, m).

        With `short` not the deviations of the values, but those of the means after such a run.
        """
        full = np.zeros(len(places))
        cross = self._covariance(places, full)  # (k, n, m)
        means = np.einsum("knm,kn->km", cross, self.alphas)
        solved = np.linalg.solve(self.factors, cross)
        variances = np.maximum(PRIOR - (solved**2).sum(1), 1e-10)
        if short is not None:
            noise, added = self.settings[:, -2, None] ** 2, self.settings[:, -1, None] ** 2
            unseen = solved
            if short:
                shorts = np.full(len(places), short)
                unseen = np.linalg.solve(self.factors, self._covariance(places, shorts))
            shared = PRIOR - (solved * unseen).sum(1)
            run = PRIOR + short**2 * (added + LEVEL**2) - (unseen**2).sum(1) + noise
            variances = np.maximum(shared**2 / np.maximum(run, 1e-10), 1e-10)
        deviations = np.sqrt(variances) * self.scales[:, None]
        return self.center + self.spread * means, self.spread * deviations

    def _covariance(self, places: Array, shorts: Array) -> Array:
        """Of what was seen with other runs, shape (k, n, m)."""
        return _covariance(self.places, self.shorts, places, shorts, self.settings, self.gradual)


def fit(places: Array, values: Array, shorts: Array, gradual: tuple[int, ...] = ()) -> Surrogate:
    """The posterior after runs at `places` (n, d) with `values` (n,), small ones being good.

    Remembered: a plan is worked out anew after every run, mostly from the same observations.
    """
    columns = (places.tobytes(), values.tobytes(), shorts.tobytes())
    return _fit(places.shape[1], gradual, *columns)


@lru_cache(maxsize=64)
def _fit(dimensions: int, gradual: tuple[int, ...], *columns: bytes) -> Surrogate:
    flat, values, shorts = (np.frombuffer(column) for column in columns)
    places = flat.reshape(-1, dimensions)
    center, spread = float(np.mean(values)), float(np.std(values)) or 1.0
    scaled = (values - center) / spread
    settings = _prior_samples(dimensions)
    covariances = _covariance(places, shorts, places, shorts, settings, gradual)
    n = len(values)
    noise = settings[:, -2, None] ** 2 * np.ones(n)[None] + 1e-8
    covariances[:, np.arange(n), np.arange(n)] += noise
    factors: Array = np.asarray(np.linalg.cholesky(covariances), dtype=np.float64)
    whitened = np.linalg.solve(factors, np.broadcast_to(scaled[:, None], (len(settings), n, 1)))
    fits = (whitened[..., 0] ** 2).sum(1)
    halves = np.log(np.diagonal(factors, axis1=1, axis2=2)).sum(1)
    evidence = -halves - (n / 2 + SHAPE) * np.log(SCALE + fits / 2)
    kept = np.argsort(-evidence)[:KEPT]
    weights = np.exp(evidence[kept] - evidence[kept[0]])
    backwards = np.swapaxes(factors[kept], 1, 2)
    return Surrogate(
        places=places,
        shorts=shorts,
        gradual=gradual,
        settings=settings[kept],
        weights=weights / weights.sum(),
        factors=factors[kept],
        alphas=np.linalg.solve(backwards, whitened[kept])[..., 0],
        scales=np.sqrt((SCALE + fits[kept] / 2) / (n / 2 + SHAPE)),
        center=center,
        spread=spread,
    )


@cache
def _prior_samples(dimensions: int) -> Array:
    """Hyperparameters from their prior, evenly spread; shape (SAMPLES, dimensions + 2)."""
    from scipy.stats import qmc  # a second to import

    priors = [*[LENGTH_SCALE] * dimensions, NOISE, SHORT]
    sampler = qmc.Sobol(len(priors), scramble=True, rng=0)
    normal = ndtri(np.clip(sampler.random(SAMPLES), 1e-6, 1 - 1e-6))
    medians, widths = (np.array(column) for column in zip(*priors, strict=True))
    samples: Array = medians * np.exp(widths * normal)
    return samples


def _covariance(
    left: Array,
    left_shorts: Array,
    right: Array,
    right_shorts: Array,
    settings: Array,
    gradual: tuple[int, ...] = (),
) -> Array:
    """Prior covariances, relative to the function's variance; shape (k, n, m)."""
    squared = (left[:, None, :] - right[None, :, :]) ** 2  # (n, m, d)
    inverse = settings[:, :-2] ** -2.0
    function = _matern(np.einsum("nmd,kd->knm", squared, inverse))
    both_short = np.outer(left_shorts, right_shorts)
    if not both_short.any():  # what follows vanishes, and takes longer
        return np.asarray(function + LEVEL**2, dtype=np.float64)
    added = settings[:, -1, None, None] ** 2 * function * both_short
    axes = list(gradual)
    apart = np.einsum("nmd,kd->knm", squared[:, :, axes], inverse[:, axes])
    constants = LEVEL**2 * (1 + _matern(apart) * both_short)
    return np.asarray(function + added + constants, dtype=np.float64)


def _matern(squared: Array) -> Array:
    """The Matern 5/2 function of squared distances."""
    distance = np.sqrt(5 * squared)
    return np.asarray((1 + distance + distance**2 / 3) * np.exp(-distance), dtype=np.float64)
