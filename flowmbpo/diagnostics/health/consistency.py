"""Does the value account for the rewards that lie between a state and the states it bootstraps from?

A TD(lambda) target is linear in rewards and values: T = R + B, with R the target of the same imagined rewards where
every value is 0, and B what the values behind them add. A value that fits its targets has V - B = R in every state;
one that is c times too large has V - B = c R exactly, however well V and T go together: B follows V.

Letters: M members of the ensemble, S start states.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

SIGMAS = 2.0
LEAST_SPREAD = 0.1  # of targets over states, in RMS sizes of R: below it noise is all there is to see

HIGH_SLOPE = 3.0  # 33 sound checkpoints: up to 1.24


@dataclass(frozen=True)
class Consistency:
    """The least-squares slope of V - B on R over start states (1 where the value fits), and what is left of V - T.

    V is the mean of the members: each is regressed on T, and their minimum lies below it wherever they differ.
    `error` is the slope's standard error (White 1980: errors may differ in size); the start states are independent
    draws. `residual` and `spread` are the standard deviations of V - T and of V over that of T, and `target_spread`
    that of T over the RMS of R. nan where R (or T) is the same in all states.
    """

    slope: float
    error: float
    residual: float
    spread: float
    target_spread: float

    def below(self, slope: float) -> bool:
        """Beyond doubt the value holds less of the rewards than this share: little, nothing, or their opposite."""
        return self.slope + SIGMAS * self.error < slope

    @property
    def too_large(self) -> bool:
        """Beyond doubt the value is a multiple of what the rewards come to."""
        return self.slope - SIGMAS * self.error > HIGH_SLOPE

    def leaves(self, residual: float) -> bool:
        """The targets vary clearly, and the value leaves more than this share of their spread unexplained."""
        return self.target_spread > LEAST_SPREAD and not self.residual <= residual


def measure_consistency(
    values: Float[Tensor, "M S"], targets: Float[Tensor, " S"], rewards: Float[Tensor, " S"]
) -> Consistency:
    """Of every member's values, the TD(lambda) targets T, and their reward part R."""
    value, target, reward = values.double().mean(0), targets.double(), rewards.double()
    centred = reward - reward.mean()
    accounted = value - (target - reward)
    square, spread = float(centred @ centred), float(target.std())
    size = float(reward.square().mean().sqrt())
    slope = error = math.nan
    if square > (1e-6 * size) ** 2 * len(reward):
        slope = float(accounted @ centred) / square
        left = accounted - accounted.mean() - slope * centred
        error = float((left * centred).norm()) / square
    return Consistency(
        slope=slope,
        error=error,
        residual=_ratio(float((value - target).std()), spread),
        spread=_ratio(float(value.std()), spread),
        target_spread=_ratio(spread, size),
    )


def _ratio(x: float, y: float) -> float:
    return x / y if y > 0.0 else math.nan
