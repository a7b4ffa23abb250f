"""Paired comparison of two ways to predict the same things."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

FLOOR = 1e-4


@dataclass(frozen=True)
class Paired:
    """The mean log ratio of the other's squared error to the baseline's: 0.7 is twice the error, -0.7 half of it.

    `z` is that mean in its standard errors over `n` blocks (rows of one block are dependent and
    count as one). Ratios, and not differences: a few rows far off would drown all others.
    """

    effect: float
    z: float
    n: int

    def to_dict(self) -> dict[str, float]:
        """The JSON object."""
        return {"effect": self.effect, "z": self.z, "n": self.n}

    def better(self, effect: float, z: float) -> bool:
        """Whether the other's errors are smaller by at least `effect`, `z` standard errors from equal."""
        return self.effect <= -effect and self.z <= -z


def compare_errors(baseline: Float[Tensor, " B"], other: Float[Tensor, " B"], block: Int[Tensor, " B"]) -> Paired:
    """Squared errors `other` against `baseline`, row by row.

    Errors below `FLOOR` of the baseline's mean count as that floor: whether they are 1e-9 or 1e-12
    of it is rounding. `z` is 0 where there are fewer than two blocks, or where nothing differs.
    """
    floor = max(FLOOR * float(baseline.double().mean()), 1e-300)
    ratio = ((other.double() + floor) / (baseline.double() + floor)).log()
    means = block_means(ratio, block)
    n = len(means)
    spread = float(means.std()) if n > 1 else 0.0
    z = float(means.mean()) / (spread / math.sqrt(n)) if spread > 0.0 else 0.0
    return Paired(float(ratio.mean()), z, n)


def block_means(x: Float[Tensor, " B"], block: Int[Tensor, " B"]) -> Float[Tensor, " n"]:
    """The mean of every block, blocks numbered 0..n-1."""
    return block_sums(x, block) / torch.bincount(block)


def block_sums(x: Float[Tensor, "B ..."], block: Int[Tensor, " B"]) -> Float[Tensor, "n ..."]:
    """The sum over the rows of every block, blocks numbered 0..n-1."""
    return x.new_zeros(int(block.max()) + 1, *x.shape[1:]).index_add(0, block, x)
