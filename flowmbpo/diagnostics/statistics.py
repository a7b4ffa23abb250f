"""Estimates with their intervals."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from scipy import stats
from torch import Tensor

from flowmbpo.json_documents import Document

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Interval(Document):
    """An estimate and its 95% confidence interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.4g} [{self.low:.4g}, {self.high:.4g}]"


def mean_interval(samples: Float[Tensor, " n"]) -> Interval:
    """Mean of independent samples with Student's t interval; unbounded for a single one."""
    x = samples.double()
    n = x.numel()
    mean = float(x.mean())
    if n < 2:
        return Interval(mean, -math.inf, math.inf)
    half = float(stats.t.ppf(0.5 + CONFIDENCE / 2, n - 1)) * float(x.std()) / math.sqrt(n)
    return Interval(mean, mean - half, mean + half)


def positive_mean_interval(samples: Float[Tensor, " n"], rounding: float = 0.0) -> Interval:
    """Mean of positive samples (squares, skewed to the right) with Student's t interval of its logarithm.

    It is widened by `rounding`, the relative error of a sample itself, for samples that do not vary.
    """
    plain = mean_interval(samples)
    if plain.value <= 0.0:
        return plain
    factor = math.exp(min((plain.high - plain.value) / plain.value, 700.0)) * (1.0 + rounding)  # 700: float64's limit
    return Interval(plain.value, plain.value / factor, plain.value * factor)


def resample_counts(n: int, resamples: int, generator: torch.Generator) -> Float[Tensor, "R n"]:
    """How often each of `n` rows comes up in each of R bootstrap resamples (float64, on the CPU)."""
    index = torch.randint(n, (resamples, n), generator=generator, device=generator.device).cpu()
    counts = torch.zeros(resamples, n, dtype=torch.float64)
    return counts.scatter_add_(1, index, torch.ones_like(counts))


def middle_interval(value: float, resampled: Float[Tensor, " R"]) -> Interval:
    """`value` with the middle 95% of its resampled values `resampled`; those that are nan are left out."""
    tail = (1.0 - CONFIDENCE) / 2
    kept = resampled[~resampled.isnan()].double()
    if not len(kept):
        return Interval(value, math.nan, math.nan)
    low, high = torch.quantile(kept, torch.tensor([tail, 1.0 - tail], dtype=torch.float64)).tolist()
    return Interval(value, low, high)


def ratio_intervals(
    numerator: Float[Tensor, "n K"], denominator: Float[Tensor, "n K"], counts: Float[Tensor, "R n"]
) -> list[Interval]:
    """K ratios of sums over rows, each with its percentile bootstrap interval; nan where the denominator sums to 0."""
    top, bottom = numerator.double().cpu(), denominator.double().cpu()
    values, resampled = (
        torch.where(below == 0.0, torch.nan, above / below)
        for above, below in ((top.sum(0), bottom.sum(0)), (counts @ top, counts @ bottom))
    )
    return [middle_interval(value, resampled[:, k]) for k, value in enumerate(values.tolist())]


def share_interval(hits: int, n: int) -> Interval:
    """A share of `n` independent trials with Wilson's score interval (Wilson 1927); nan where n is 0."""
    if not n:
        return Interval(math.nan, 0.0, 1.0)
    bounds = stats.binomtest(hits, n).proportion_ci(CONFIDENCE, method="wilson")
    return Interval(hits / n, float(bounds.low), float(bounds.high))


def jackknife_interval(value: float, left_out: Float[Tensor, " n"]) -> Interval:
    """Interval of a statistic from its values with one of n samples left out each (Tukey 1958), Student's t."""
    x = left_out.double()
    n = x.numel()
    variance = (n - 1) / n * float((x - x.mean()).square().sum())
    half = float(stats.t.ppf(0.5 + CONFIDENCE / 2, n - 1)) * math.sqrt(variance)
    return Interval(value, value - half, value + half)


@dataclass(frozen=True)
class Fit(Document):
    """Least-squares line `y = intercept + slope x` and Pearson's correlation; nan where x or y is constant."""

    correlation: float
    slope: float
    intercept: float


def fit_line(x: Float[Tensor, " n"], y: Float[Tensor, " n"]) -> Fit:
    """The line through (x, y) in float64. A spread below a billionth of the values' size counts as none."""
    x, y = x.double(), y.double()
    dx, dy = x - x.mean(), y - y.mean()
    spread_x, spread_y = float(dx.norm()), float(dy.norm())
    if spread_x <= 1e-9 * max(float(x.norm()), 1e-300):
        return Fit(math.nan, math.nan, float(y.mean()))
    slope = float(dx @ dy) / spread_x**2
    constant = spread_y <= 1e-9 * max(float(y.norm()), 1e-300)
    correlation = math.nan if constant else float(dx @ dy) / (spread_x * spread_y)
    return Fit(correlation, slope, float(y.mean()) - slope * float(x.mean()))
