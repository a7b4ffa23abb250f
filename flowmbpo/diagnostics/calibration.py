"""Do events happen as often as they are predicted? Reliability, Brier score, expected calibration error."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from flowmbpo.diagnostics.statistics import Interval, middle_interval, share_interval

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

    `brier` is the mean squared difference of probability and outcome; `fair_brier` without what a finite
    number of samples adds to it (Ferro 2014). `brier` = reliability - resolution + uncertainty + remainder
    (Murphy 1973), where the remainder comes from forecasts that differ within a bin (Stephenson et al. 2008).
    `skill` is 1 - fair_brier / uncertainty: 0 for a forecaster that always says the base rate, nan where
    nothing or everything happened.
    `ece` is the mean distance of predicted and observed frequency over bins; it is above 0 by chance alone,
    up to `ece_if_calibrated` in 95% of cases for a forecaster whose probabilities are true.
    """

    n: int
    base_rate: Interval
    predicted_rate: float
    brier: Interval
    fair_brier: float
    reliability: float
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
    size = member.sum(0).clamp(min=1.0)
    mean_p, mean_y = (p @ member) / size, (y @ member) / size
    share = member.mean(0)
    reliability = float((share * (mean_p - mean_y).square()).sum())
    resolution = float((share * (mean_y - base) ** 2).sum())
    uncertainty = base * (1.0 - base)
    draws = torch.rand(len(counts), len(p), generator=generator, device=generator.device).cpu().double() < p
    chance = ((draws.double() - p) @ member).abs().sum(1) / len(p)
    return Calibration(
        n=len(p),
        base_rate=share_interval(int(y.sum()), len(y)),
        predicted_rate=float(p.mean()),
        brier=middle_interval(brier, counts @ square / len(p)),
        fair_brier=fair,
        reliability=reliability,
        resolution=resolution,
        uncertainty=uncertainty,
        remainder=brier - (reliability - resolution + uncertainty),
        skill=1.0 - fair / uncertainty if uncertainty > 0.0 else float("nan"),
        ece=middle_interval(
            float((share * (mean_p - mean_y).abs()).sum()),
            (counts @ ((p - y).unsqueeze(1) * member)).abs().sum(1) / len(p),
        ),
        ece_if_calibrated=float(torch.quantile(chance, 0.95)),
        bins=_bins(member.long(), mean_p, y.long()),
    )


def _bin_of(p: Tensor) -> Float[Tensor, "n bins"]:
    """One-hot membership; 1 belongs to the last bin."""
    index = torch.bucketize(p, torch.tensor(EDGES[1:-1], dtype=p.dtype), right=True)
    return torch.nn.functional.one_hot(index, len(EDGES) - 1).double()


def _bins(member: Int[Tensor, "n bins"], mean_p: Tensor, happened: Int[Tensor, " n"]) -> tuple[Bin, ...]:
    sizes, hits = member.sum(0).tolist(), (happened @ member).tolist()
    every = zip(EDGES[:-1], EDGES[1:], sizes, mean_p.tolist(), hits, strict=True)
    return tuple(Bin(low, high, n, p, share_interval(hit, n)) for low, high, n, p, hit in every if n)
