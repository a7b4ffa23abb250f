"""Has a sample more than one mode, and how far is it from a Gaussian?

Hartigan's dip (Hartigan & Hartigan 1985) is the largest distance between a sample's distribution function and the
nearest unimodal one. Its test is calibrated on the uniform distribution, the unimodal one that dips most.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy import stats

SAMPLES = 128
CRITICAL_DIP = 0.04556  # that SIGNIFICANCE of uniform samples of size SAMPLES exceed (100,000 draws: known to 0.0002)
SIGNIFICANCE = 0.05
_GAUSSIAN_DRAWS, _SEED = 4000, 0  # of the reference draws: the bias is a constant of n

Floats = NDArray[np.float64]


def dip(sample: Floats) -> float:
    """The dip of n >= 2 numbers: between 1 / (2n) and 1/4.

    The modal interval shrinks from all data to where the greatest convex minorant and the least concave majorant of the
    distribution function differ most. Heights are counted in points: a step of the distribution function is 1.
    """
    x = np.sort(np.asarray(sample, dtype=np.float64))
    n = len(x)
    height = np.arange(n, dtype=np.float64)
    low, high = 0, n - 1
    deepest = 1.0
    while x[low] < x[high]:
        below = _hull(x, low, high, convex=True)
        above = _hull(x, low, high, convex=False)
        inside = slice(low, high + 1)
        minorant = np.interp(x[inside], x[below], height[below])
        # The majorant lies over the upper ends of the steps, one above the points that it was drawn through.
        majorant = np.interp(x[inside], x[above], height[above]) + 1.0
        gap = majorant - minorant
        vertices = np.union1d(below, above)
        widest = int(vertices[np.argmax(gap[vertices - low])])
        if gap[widest - low] <= deepest:
            break
        new_low, new_high = int(below[below <= widest].max()), int(above[above >= widest].min())
        rise = (height[inside] + 1.0 - minorant)[: new_low - low + 1]
        fall = (majorant - height[inside])[new_high - low :]
        deepest = max(deepest, float(rise.max()), float(fall.max()))
        if (new_low, new_high) == (low, high):
            break
        low, high = new_low, new_high
    return deepest / (2.0 * n)


def _hull(x: Floats, low: int, high: int, *, convex: bool) -> NDArray[np.int64]:
    """Indices at which the lower (convex) or upper hull of the points (x_i, i), low <= i <= high, turns."""
    sign = 1.0 if convex else -1.0
    kept: list[int] = []
    for i in range(low, high + 1):
        while len(kept) > 1:
            a, b = kept[-2], kept[-1]
            if sign * ((b - a) * (x[i] - x[b]) - (i - b) * (x[b] - x[a])) < 0.0:
                break
            kept.pop()
        kept.append(i)
    return np.array(kept)


def negentropy(samples: Floats) -> Floats:
    """Entropy that a Gaussian of the same variance has more, in nats, of samples [n, K]; 0 for a Gaussian.

    Vasicek's spacing estimate (1976), less its own mean over Gaussian samples of size n. nan for a column that takes
    one value many times.
    """
    return _raw_negentropy(samples) - _gaussian_bias(len(samples))


@lru_cache(maxsize=8)
def _gaussian_bias(n: int) -> float:
    rng = np.random.default_rng(_SEED)
    return float(_raw_negentropy(rng.standard_normal((n, _GAUSSIAN_DRAWS))).mean())


def _raw_negentropy(samples: Floats) -> Floats:
    spread = samples.std(axis=0, ddof=1)
    varies = spread > 1e-9 * np.abs(samples).max(axis=0)
    excess = np.full(samples.shape[1], math.nan)
    with np.errstate(divide="ignore"):  # of spacings that are 0
        entropy = stats.differential_entropy(samples[:, varies] / spread[varies], axis=0, method="vasicek")
    excess[varies] = np.where(np.isfinite(entropy), 0.5 * math.log(2.0 * math.pi * math.e) - entropy, math.nan)
    return excess
