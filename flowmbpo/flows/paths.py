"""Flow time: how it is drawn and how it enters a network."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from flowmbpo.nets.noise import uniform


def sample_tau(like: Float[Tensor, "B D"], sampling: str, generator: torch.Generator | None) -> Float[Tensor, "B 1"]:
    """tau ~ U[0, 1] per row, or 0.5 for `midpoint`."""
    if sampling == "midpoint":
        return like.new_full((like.shape[0], 1), 0.5)
    return uniform(like, (like.shape[0], 1), generator)


FOURIER_FREQUENCIES = 4


def tau_width(features: str) -> int:
    """Number of input columns that flow time takes."""
    return 1 if features == "scalar" else 1 + 2 * FOURIER_FREQUENCIES


def tau_columns(tau: Float[Tensor, "B 1"], features: str) -> Float[Tensor, "B F"]:
    """tau itself, or tau with sin and cos of pi 2^k tau, k = 0..3 (one period and finer)."""
    if features == "scalar":
        return tau
    frequencies = math.pi * 2.0 ** torch.arange(FOURIER_FREQUENCIES, dtype=tau.dtype, device=tau.device)
    angles = tau * frequencies
    return torch.cat([tau, angles.sin(), angles.cos()], dim=-1)
