"""The soft indicators that suite rewards are made of, for single numbers. Imports no torch.

They are dm_control's `rewards.tolerance` outside its bounds, as functions of the distance to the
nearest bound in units of the margin.
"""

from __future__ import annotations

import numpy as np

GAUSSIAN_SCALE = float(np.sqrt(-2 * np.log(0.1)))
"""A Gaussian of distance 1 is 0.1 with this factor on the distance."""


def gaussian(distance: float) -> float:
    """exp(-(s d)^2 / 2): 1 at distance 0, 0.1 at distance 1."""
    return float(np.exp(-0.5 * (distance * GAUSSIAN_SCALE) ** 2))


def linear(distance: float, slope: float) -> float:
    """1 - slope * distance, and 0 from where that line ends."""
    fall = distance * slope
    return 1 - fall if abs(fall) < 1 else 0.0


def indicator(x: float, lower: float, upper: float) -> float:
    """1 where lower <= x <= upper, else 0."""
    return 1.0 if lower <= x <= upper else 0.0
