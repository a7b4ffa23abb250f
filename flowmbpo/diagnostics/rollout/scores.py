"""Energy distance between samples, and the energy score of a forecast (Szekely & Rizzo 2013; Gneiting & Raftery 2007).

The energy distance 2 E|X - Y| - E|X - X'| - E|Y - Y'| is 0 where X and Y have one distribution and positive elsewhere.
Estimates are unbiased U-statistics: equal distributions give 0 on average. Distances are Euclidean, in float64.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from flowmbpo.diagnostics.statistics import Interval, middle_interval, share_interval


@dataclass(frozen=True)
class EnergyDistance:
    """Of `n` predicted and `n` real points; `coefficient` divides by 2 E|X - Y|: free of units, 1 at most."""

    n: int
    distance: Interval
    coefficient: float


def pair_distances(x: Float[Tensor, "n d"], y: Float[Tensor, "n d"]) -> tuple[Float[Tensor, "n n"], float]:
    """h_ij = |x_i - y_j| + |x_j - y_i| - |x_i - x_j| - |y_i - y_j| with h_ii = 0, and the mean |x_i - y_j|, i != j.

    Its mean over i != j is the unbiased energy distance although x_i and y_i may depend on each other.
    """
    across = _distances(x, y)
    kernel = (across + across.T - _distances(x, x) - _distances(y, y)).fill_diagonal_(0.0)
    n = len(x)
    return kernel, float((across.sum() - across.diagonal().sum()) / (n * (n - 1)))


def paired_energy(x: Float[Tensor, "n d"], y: Float[Tensor, "n d"], counts: Float[Tensor, "R n"]) -> EnergyDistance:
    """Energy distance of predictions x and truths y, n >= 2, with the bootstrap interval over pairs.

    A resample leaves out what a row that it holds twice would give with itself. Near 0 the interval is too wide.
    """
    kernel, across = pair_distances(x, y)
    n = len(kernel)
    value = float(kernel.sum() / (n * (n - 1)))
    resampled = ((counts @ kernel) * counts).sum(1) / (n**2 - counts.square().sum(1))
    coefficient = value / (2.0 * across) if across > 0.0 else 0.0
    return EnergyDistance(n, middle_interval(value, resampled), coefficient)


def sample_energy(x: Float[Tensor, "S M d"], y: Float[Tensor, "S R d"]) -> Float[Tensor, " S"]:
    """Unbiased energy distance of M points from R independent ones, for each of S problems; M, R >= 2."""

    def within(points: Tensor) -> Tensor:
        count = points.shape[-2]
        return _distances(points, points).sum((-2, -1)) / (count * (count - 1))

    return 2.0 * _distances(x, y).mean((-2, -1)) - within(x) - within(y)


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


def _distances(x: Tensor, y: Tensor) -> Tensor:
    # The matrix-product shortcut of cdist loses half the digits of small distances.
    return torch.cdist(x.double().cpu(), y.double().cpu(), compute_mode="donot_use_mm_for_euclid_dist")


EDGES = (0.0, 0.02, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0)
"""Of the bins of predicted probability: finer near 0, for the events asked about are rare."""


@dataclass(frozen=True)
class Bin:
    """Forecasts in [low, high): how many, their mean, and how often the event then happened."""

    low: float
    high: float
    n: int
    predicted: float
    observed: Interval


@dataclass(frozen=True)
class Calibration:
    """`n` forecasts of an event and what happened.

    `brier` is the mean squared difference of probability and outcome; `fair_brier` without what a finite number of
    samples adds to it (Ferro 2014). `brier` = reliability - resolution + uncertainty + remainder (Murphy 1973; the last
    of forecasts that differ within a bin). `skill` is 1 - fair_brier / uncertainty: 0 for the base rate, nan where
    nothing or everything happened. `ece` is the mean distance of predicted and observed frequency over bins. By chance
    it and `reliability` reach `ece_if_calibrated` and `reliability_if_calibrated` (95%, see `_chance`).
    """

    n: int
    base_rate: Interval
    predicted_rate: float
    brier: Interval
    fair_brier: float
    reliability: float
    reliability_if_calibrated: float
    resolution: float
    uncertainty: float
    remainder: float
    skill: float
    ece: Interval
    ece_if_calibrated: float
    bins: tuple[Bin, ...]


def calibrate(
    predicted: Float[Tensor, " n"],
    happened: Bool[Tensor, " n"],
    counts: Float[Tensor, "R n"],
    generator: torch.Generator,
    *,
    members: int,
) -> Calibration:
    """Judge n >= 1 probabilities, each a share of `members` samples (1: a deterministic forecast, 0 or 1)."""
    p, y = predicted.double().cpu(), happened.double().cpu()
    member = _bin_of(p)
    square = (p - y).square()
    brier, base = float(square.mean()), float(y.mean())
    fair = brier - float((p * (1.0 - p)).mean()) / (members - 1) if members > 1 else brier
    sizes, hits = member.sum(0), y @ member
    at_least_one = sizes.clamp(min=1.0)
    mean_p, mean_y = (p @ member) / at_least_one, hits / at_least_one
    share = member.mean(0)
    reliability = float((share * (mean_p - mean_y).square()).sum())
    resolution, uncertainty = float((share * (mean_y - base) ** 2).sum()), base * (1.0 - base)
    ece = float((share * (mean_p - mean_y).abs()).sum())
    chance_ece, chance_reliability = _chance(p, len(counts), members, generator)
    every = zip(EDGES[:-1], EDGES[1:], sizes.tolist(), mean_p.tolist(), hits.tolist(), strict=True)
    return Calibration(
        n=len(p),
        base_rate=share_interval(int(y.sum()), len(y)),
        predicted_rate=float(p.mean()),
        brier=middle_interval(brier, counts @ square / len(p)),
        fair_brier=fair,
        reliability=reliability,
        reliability_if_calibrated=chance_reliability,
        resolution=resolution,
        uncertainty=uncertainty,
        remainder=brier - (reliability - resolution + uncertainty),
        skill=1.0 - fair / uncertainty if uncertainty > 0.0 else float("nan"),
        ece=middle_interval(ece, (counts @ ((p - y).unsqueeze(1) * member)).abs().sum(1) / len(p)),
        ece_if_calibrated=chance_ece,
        bins=tuple(Bin(a, b, int(n), p, share_interval(int(hit), int(n))) for a, b, n, p, hit in every if n),
    )


def _chance(p: Float[Tensor, " n"], repeats: int, members: int, generator: torch.Generator) -> tuple[float, float]:
    """95% quantiles of ECE and reliability of a forecaster whose true probabilities look like the shares `p`.

    Shares that happened to be high lie in the high bins: so probabilities are drawn first (from the posterior, given
    each share, of a Beta prior that has the mean and the variance of all), then new shares and outcomes. A perfect
    forecaster of 256 events by 32 members exceeds the ECE's quantile in 4 to 8% of cases. A single member claims
    certainty.
    """
    if members == 1:
        return 0.0, 0.0
    n = len(p)
    mean = (float(p.sum()) * members + 0.5) / (n * members + 1.0)  # never 0 or 1
    variance = float(p.var(correction=0) - (p * (1.0 - p)).mean() / (members - 1))
    weight = max(mean * (1.0 - mean) / max(variance, 1e-9) - 1.0, 1e-3)  # least: all probabilities nearly 0 or 1
    seed = int(torch.randint(2**31, (1,), generator=generator, device=generator.device))
    rng, hits = np.random.default_rng(seed), (p * members).numpy()
    truth = rng.beta(mean * weight + hits, (1.0 - mean) * weight + members - hits, (repeats, n))
    shares = torch.from_numpy(rng.binomial(members, truth) / members)
    excess = shares - torch.from_numpy(rng.random((repeats, n)) < truth).double()
    member = _bin_of(shares)
    off, size = (excess.unsqueeze(-1) * member).sum(1), member.sum(1).clamp(min=1.0)
    figures = off.abs().sum(-1) / n, (off.square() / size).sum(-1) / n
    ece, reliability = (float(torch.quantile(figure, 0.95)) for figure in figures)
    return ece, reliability


def _bin_of(p: Float[Tensor, "*n"]) -> Float[Tensor, "*n bins"]:
    """One-hot membership; 1 belongs to the last bin."""
    index = torch.bucketize(p, torch.tensor(EDGES[1:-1], dtype=p.dtype), right=True)
    return torch.nn.functional.one_hot(index, len(EDGES) - 1).double()
