"""Signal to noise of a gradient: how much of it is its expectation, and how much is chance.

With M independent gradients g at fixed parameters, g_bar their mean and S their unbiased covariance::

    ESNR = (||g_bar||^2 - tr(S) / M) / tr(S)

The numerator is the mean of g_i . g_j over the pairs i != j: unbiased for ||E g||^2, so often below zero without
signal. The ratio carries the bias of 1 / tr(S), about 2 / (M k) with noise in k dimensions. M gradients, n coordinates.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from flowmbpo.diagnostics.statistics import (
    Interval,
    jackknife_interval,
    mean_interval,
    middle_interval,
    resample_counts,
)

NO_NOISE = 1e-12
"""tr(S) below this share of the mean ||g||^2 is none: equal gradients that differ by float32's rounding leave 1e-14."""
PER_COORDINATE_FLOOR = 1e-9  # added to a coordinate's variance in PWM's code
COLUMNS = 1 << 16  # coordinates turned into float64 at a time


@dataclass(frozen=True)
class Esnr:
    """ESNR of M gradients, and their norms.

    `interval` is None where no bootstrap was asked for; `infinite` marks tr(S) = 0 (`value` is then None). `signal` and
    `noise` estimate ||E g||^2 (unbiased, may be negative) and tr(S); `norm` is the mean length of one gradient.
    """

    value: float | None
    interval: Interval | None
    infinite: bool
    signal: float
    noise: float
    norm: Interval
    gradients: int

    @property
    def decibel(self) -> float | None:
        """The value in dB, where it has one."""
        return None if self.value is None else decibel(self.value)

    def to_dict(self) -> dict[str, Any]:
        """The JSON object; `db` bounds are null where they are not positive."""
        bounds = None if self.interval is None else [self.interval.low, self.interval.high]
        head = {"value": self.value, "interval": bounds, "infinite": self.infinite, "db": self.decibel}
        sizes = {"M": self.gradients, "signal": self.signal, "noise": self.noise, "norm": self.norm.to_dict()}
        return head | {"db_interval": None if bounds is None else [decibel(bound) for bound in bounds]} | sizes

    def __str__(self) -> str:
        if self.infinite:
            return f"infinite: all {self.gradients} gradients are {'zero' if self.signal == 0.0 else 'equal'}"
        level = "no dB, for it is not positive" if self.decibel is None else f"{self.decibel:.1f} dB"
        shown = f"{self.value:.4g}" if self.interval is None else str(self.interval)
        return f"{shown} ({level}), M {self.gradients}"


def decibel(ratio: float) -> float | None:
    """10 log10 of a ratio of powers; None where it is not positive."""
    return 10.0 * math.log10(ratio) if ratio > 0.0 else None


def esnr_from_gram(gram: Float[Tensor, "M M"], generator: torch.Generator | None = None, resamples: int = 1000) -> Esnr:
    """ESNR from the inner products g_i . g_j of M >= 2 gradients: all that it, and its bootstrap, need.

    The interval is `bootstrap_esnr`'s, and None without a generator or resamples.
    """
    gram = gram.double()
    count, squares = len(gram), gram.diagonal()
    signal = float(gram.sum() - squares.sum()) / (count * (count - 1))
    noise = float(squares.mean()) - signal
    norm = mean_interval(squares.clamp(min=0.0).sqrt())
    if noise <= NO_NOISE * float(squares.mean()):
        return Esnr(None, None, True, signal, 0.0, norm, count)
    value, interval = signal / noise, None
    if generator is not None and resamples > 0:
        interval = bootstrap_esnr(value, gram, generator, resamples)
    return Esnr(value, interval, False, signal, noise, norm, count)


def bootstrap_esnr(value: float, gram: Float[Tensor, "M M"], generator: torch.Generator, resamples: int) -> Interval:
    """`value` with the middle 95% of its values in `resamples` resamples (percentile bootstrap, Efron 1979).

    A pair of equal gradients would count noise as signal: both are therefore means over the pairs of different
    originals. Measured coverage of the truth: .91 to 1.00 at M = 64 with Gaussian noise, .88 or more with heavy tails;
    at M = 8 and ESNR 30 .84 and .72.
    """
    gram = gram.double().cpu()
    count = len(gram)
    counts = resample_counts(count, resamples, generator)
    squares = gram.diagonal()
    signal = ((counts @ gram) * counts).sum(1) - counts.square() @ squares
    noise = (counts * (count - counts)) @ squares - signal
    usable = noise > NO_NOISE * count**2 * squares.mean()  # not so where one gradient came up every time
    return middle_interval(value, torch.where(usable, signal / noise, torch.nan))


def per_coordinate_snr(gradients: Float[Tensor, "M n"]) -> Interval:
    """Mean over coordinates of g_bar_i^2 / (var_i + 1e-9), as the code of PWM computes its "ESNR".

    It is never negative, pure noise gives (M - 1) / (M (M - 3)) and not 0, and it depends on the gradient's scale. The
    interval is a jackknife over the M gradients, noise floor included.
    """
    x = gradients.double()
    count = len(x)
    total, square = x.sum(0), x.square().sum(0)
    value = _mean_ratio(total, square, count)
    if count < 3:
        return Interval(value, -math.inf, math.inf)
    left_out = torch.tensor([_mean_ratio(total - row, square - row.square(), count - 1) for row in x])
    interval = jackknife_interval(value, left_out)
    return Interval(value, max(interval.low, 0.0), interval.high)


def _mean_ratio(total: Tensor, square: Tensor, count: int) -> float:
    mean = total / count
    variance = ((square - total * mean) / (count - 1)).clamp(min=0.0)
    return float((mean.square() / (variance + PER_COORDINATE_FLOOR)).mean())


def inner_products(a: Float[Tensor, "K n"], b: Float[Tensor, "L n"]) -> Float[Tensor, "K L"]:
    """a b^T summed in float64, without a float64 copy of either."""
    result = torch.zeros(len(a), len(b), dtype=torch.float64, device=a.device)
    for part_a, part_b in zip(torch.split(a, COLUMNS, dim=1), torch.split(b, COLUMNS, dim=1), strict=True):
        result += part_a.double() @ part_b.double().T
    return result
