"""Energy distance between samples, and the energy score of a forecast (Szekely & Rizzo 2013; Gneiting & Raftery 2007).

The energy distance 2 E|X - Y| - E|X - X'| - E|Y - Y'| is 0 where X and Y have one distribution and
positive elsewhere; in one dimension it is twice the squared area between the distribution functions.
All estimates are U-statistics: unbiased, so that equal distributions give 0 on average and now and then a
negative value. Distances are Euclidean, in float64.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from flowmbpo.diagnostics.statistics import Interval, middle_interval


@dataclass(frozen=True)
class EnergyDistance:
    """Of `n` predicted and `n` real points; `coefficient` divides by 2 E|X - Y|: free of units, 1 at most."""

    n: int
    distance: Interval
    coefficient: float


def pair_distances(x: Float[Tensor, "n d"], y: Float[Tensor, "n d"]) -> tuple[Float[Tensor, "n n"], float]:
    """h_ij = |x_i - y_j| + |x_j - y_i| - |x_i - x_j| - |y_i - y_j| with h_ii = 0, and the mean |x_i - y_j|, i != j.

    Its mean over i != j is the unbiased energy distance of the two distributions although x_i and y_i may
    depend on each other (a prediction and the truth from one start state).
    """
    across = _distances(x, y)
    kernel = (across + across.T - _distances(x, x) - _distances(y, y)).fill_diagonal_(0.0)
    n = len(x)
    return kernel, float((across.sum() - across.diagonal().sum()) / (n * (n - 1)))


def paired_energy(x: Float[Tensor, "n d"], y: Float[Tensor, "n d"], counts: Float[Tensor, "R n"]) -> EnergyDistance:
    """Energy distance of predictions x and truths y, n >= 2, with the bootstrap interval over pairs.

    A resample leaves out what a row that it holds twice would give with itself. Near 0 the statistic is degenerate and
    the interval wider than it need be.
    """
    kernel, across = pair_distances(x, y)
    n = len(kernel)
    value = float(kernel.sum() / (n * (n - 1)))
    found = ((counts @ kernel) * counts).sum(1) / (n**2 - counts.square().sum(1))
    coefficient = value / (2.0 * across) if across > 0.0 else 0.0
    return EnergyDistance(n, middle_interval(value, found), coefficient)


def sample_energy(x: Float[Tensor, "S M d"], y: Float[Tensor, "S R d"]) -> Float[Tensor, " S"]:
    """Unbiased energy distance of M points from R independent ones, for each of S problems; M, R >= 2."""
    return 2.0 * _distances(x, y).mean((-2, -1)) - _within(x) - _within(y)


def energy_score(
    samples: Float[Tensor, "B M d"], outcome: Float[Tensor, "B d"], present: Bool[Tensor, "B M"] | None = None
) -> Float[Tensor, " B"]:
    """E|X - y| - E|X - X'| / 2 of each forecast: smaller is better, and on average least for the true distribution.

    Unbiased in the number of samples M (Ferro's fair score); |x - y| for a single one. In one dimension it
    is the CRPS. Only samples that are `present` count: each forecast needs two of them, or has one in all.
    """
    across = _distances(samples, outcome.unsqueeze(-2)).squeeze(-1)
    there = torch.ones_like(across) if present is None else present.to(across)
    number = there.sum(-1)
    error = (across * there).sum(-1) / number
    if samples.shape[-2] == 1:
        return error
    pairs = there.unsqueeze(-1) * there.unsqueeze(-2)
    within = (_distances(samples, samples) * pairs).sum((-2, -1)) / (number * (number - 1.0))
    return error - 0.5 * within


def _within(x: Tensor) -> Tensor:
    m = x.shape[-2]
    return _distances(x, x).sum((-2, -1)) / (m * (m - 1))


def _distances(x: Tensor, y: Tensor) -> Tensor:
    # The matrix-product shortcut of cdist loses half the digits of small distances.
    return torch.cdist(x.double().cpu(), y.double().cpu(), compute_mode="donot_use_mm_for_euclid_dist")
