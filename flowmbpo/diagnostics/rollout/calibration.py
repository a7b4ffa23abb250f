"""Do events happen as often as they are predicted? Reliability, Brier score, expected calibration error."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
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
    `ece` is the mean distance of predicted and observed frequency over bins. Both it and `reliability` are above 0 by
    chance alone, up to `ece_if_calibrated` and `reliability_if_calibrated` in 95% of cases for a forecaster whose
    probabilities are true but known by the share of so many samples (see `_chance`).
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
    size = member.sum(0).clamp(min=1.0)
    mean_p, mean_y = (p @ member) / size, (y @ member) / size
    share = member.mean(0)
    reliability = float((share * (mean_p - mean_y).square()).sum())
    resolution = float((share * (mean_y - base) ** 2).sum())
    uncertainty = base * (1.0 - base)
    chance_ece, chance_reliability = _chance(p, len(counts), members, generator)
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
        ece=middle_interval(
            float((share * (mean_p - mean_y).abs()).sum()),
            (counts @ ((p - y).unsqueeze(1) * member)).abs().sum(1) / len(p),
        ),
        ece_if_calibrated=chance_ece,
        bins=_bins(member.long(), mean_p, y.long()),
    )


def _chance(p: Float[Tensor, " n"], repeats: int, members: int, generator: torch.Generator) -> tuple[float, float]:
    """95% quantiles of ECE and reliability of a forecaster whose true probabilities look like the shares `p`.

    A share scatters around its probability, and shares that happened to be high lie in the high bins: so the
    probabilities are drawn first (from the posterior, given each share, of a Beta prior that has the mean and the
    variance of all of them), then new shares and outcomes, binned anew. A perfect forecaster of 256 events by 32
    members exceeds the quantile of the ECE in 4 to 8% of cases (150 repeats: probabilities .05, .1, uniform to .3 and
    to 1, .01 mixed with .5); by 4 members in 12% (.1). A single member claims certainty: nothing is left to chance.
    """
    if members == 1:
        return 0.0, 0.0
    n = len(p)
    mean = (float(p.sum()) * members + 0.5) / (n * members + 1.0)  # never 0 or 1
    variance = float(p.var(correction=0) - (p * (1.0 - p)).mean() / (members - 1))
    weight = mean * (1.0 - mean) / max(variance, 1e-9) - 1.0
    weight = max(weight, 1e-3)  # all probabilities nearly 0 or 1
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


def _bins(member: Int[Tensor, "n bins"], mean_p: Tensor, happened: Int[Tensor, " n"]) -> tuple[Bin, ...]:
    sizes, hits = member.sum(0).tolist(), (happened @ member).tolist()
    every = zip(EDGES[:-1], EDGES[1:], sizes, mean_p.tolist(), hits, strict=True)
    return tuple(Bin(low, high, n, p, share_interval(hit, n)) for low, high, n, p, hit in every if n)
