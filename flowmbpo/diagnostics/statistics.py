"""Estimates with their intervals."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from scipy import stats
from torch import Tensor

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Interval:
    """An estimate and its 95% confidence interval."""

    value: float
    low: float
    high: float

    def to_dict(self) -> dict[str, float]:
        """The JSON object."""
        return {"value": self.value, "low": self.low, "high": self.high}

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


def bootstrap_interval(
    rows: Tensor, statistic: Callable[[Tensor], float], generator: torch.Generator, resamples: int = 1000
) -> Interval:
    """Percentile bootstrap of `statistic` over the first dimension of `rows` (Efron 1979).

    The value is the statistic of all rows; the interval spans the middle 95% of `resamples` resamples.
    """
    value = statistic(rows)
    n = len(rows)
    index = torch.randint(n, (resamples, n), generator=generator, device=generator.device).to(rows.device)
    found = torch.tensor([statistic(rows[chosen]) for chosen in index], dtype=torch.float64)
    tail = (1.0 - CONFIDENCE) / 2
    low, high = torch.quantile(found, torch.tensor([tail, 1.0 - tail], dtype=torch.float64)).tolist()
    return Interval(value, low, high)


@dataclass(frozen=True)
class Fit:
    """Least-squares line `y = intercept + slope x` and Pearson's correlation; nan where x or y is constant."""

    correlation: float
    slope: float
    intercept: float

    def to_dict(self) -> dict[str, Any]:
        """The JSON object."""
        return {"correlation": self.correlation, "slope": self.slope, "intercept": self.intercept}


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
