"""Running statistics that live in a module's buffers, so that checkpoints carry them."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn


class RunningMoments(nn.Module):
    """Exact mean and second moment of every scalar seen so far (float64 sums)."""

    count: Tensor
    total: Tensor
    total_square: Tensor

    def __init__(self) -> None:
        super().__init__()
        for name in ("count", "total", "total_square"):
            self.register_buffer(name, torch.zeros((), dtype=torch.float64))

    @torch.no_grad()
    def update(self, x: Float[Tensor, "..."]) -> None:
        """Add every element of `x`."""
        x = x.double()
        self.count += x.numel()
        self.total += x.sum()
        self.total_square += x.square().sum()

    @property
    def mean(self) -> Float[Tensor, ""]:
        """Mean, 0 before any data."""
        return (self.total / self.count.clamp(min=1.0)).float()

    @property
    def rms(self) -> Float[Tensor, ""]:
        """Root mean square, 1 where nothing but zeros was seen (a scale must not be 0)."""
        square = self.total_square / self.count.clamp(min=1.0)
        return torch.where(square > 1e-12, square, 1.0).sqrt().float()

    @property
    def std(self) -> Float[Tensor, ""]:
        """Population standard deviation, 1 where the data are constant."""
        n = self.count.clamp(min=1.0)
        variance = self.total_square / n - (self.total / n).square()
        return torch.where(variance > 1e-12, variance, 1.0).sqrt().float()


class RunningStd(nn.Module):
    """Exponentially weighted standard deviation per feature, bias-corrected from the first batch.

    float64 sums: the spread of near-constant returns (mean 100, std 0.05) drowns in float32's rounding.
    """

    mean: Tensor
    square: Tensor
    weight: Tensor

    def __init__(self, features: int, decay: float) -> None:
        super().__init__()
        self.decay = decay
        self.register_buffer("mean", torch.zeros(features, dtype=torch.float64))
        self.register_buffer("square", torch.zeros(features, dtype=torch.float64))
        # One element, for compiled, torch 2.13 drops what is written to a float64 scalar; a scalar in checkpoints.
        self.register_buffer("weight", torch.zeros(1, dtype=torch.float64))

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[prefix + "weight"] = destination[prefix + "weight"].reshape(())

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *others: Any) -> None:
        if (key := prefix + "weight") in state_dict:
            state_dict[key] = state_dict[key].reshape(1)
        super()._load_from_state_dict(state_dict, prefix, *others)

    @torch.no_grad()
    def update(self, x: Float[Tensor, "B F"], valid: Bool[Tensor, " B"] | None = None) -> None:
        """Blend in the `valid` rows of one batch (None: all).

        Rows that are not finite are left out too, for they would stay for ever.
        """
        x = x.double()
        usable = x.isfinite().all(-1, keepdim=True)
        if valid is not None:
            usable = usable & valid.unsqueeze(-1)
        rows = usable.sum()
        kept = torch.where(usable, x, 0.0)
        rest = torch.where(rows > 0, 1.0 - self.decay, 0.0).to(x.dtype)
        self.mean.lerp_(kept.sum(0) / rows.clamp(min=1), rest)
        self.square.lerp_(kept.square().sum(0) / rows.clamp(min=1), rest)
        self.weight.lerp_(torch.ones_like(self.weight), rest)

    @property
    def std(self) -> Float[Tensor, " F"]:
        """Standard deviation; 1 before any data and for constant features."""
        weight = self.weight.clamp(min=1e-12)
        variance = self.square / weight - (self.mean / weight).square()
        return torch.where(variance > 1e-12, variance, 1.0).sqrt().float()


class ObservationNormalizer(nn.Module):
    """(o - mean) / std per feature, clipped to +-10; the statistics are those of the first `samples` observations.

    They are fixed then: a state whose meaning drifts for ever would never be the one that the networks were trained on.
    Features that do not vary are centred only.
    """

    count: Tensor
    total: Tensor
    total_square: Tensor

    def __init__(self, features: int, samples: int) -> None:
        super().__init__()
        self.samples = samples
        for name in ("count", "total", "total_square"):  # each per feature: a new task may bring more of them
            self.register_buffer(name, torch.zeros(features, dtype=torch.float64))

    @torch.no_grad()
    def update(self, obs: Float[Tensor, "N F"]) -> None:
        """Add newly collected observations, until there were enough."""
        growing = self.count < self.samples
        if growing.any():
            x = obs.double() * growing
            self.count += len(x) * growing
            self.total += x.sum(0)
            self.total_square += x.square().sum(0)

    def forward(self, obs: Float[Tensor, "*B F"]) -> Float[Tensor, "*B F"]:
        """Normalised observations; as they are before any data."""
        n = self.count.clamp(min=1.0)
        mean = self.total / n
        variance = self.total_square / n - mean.square()
        std = torch.where(variance > 1e-8, variance, 1.0).sqrt()
        return ((obs - mean.float()) / std.float()).clamp(-10.0, 10.0)
