"""Two-hot regression in symlog space (DreamerV3, Hafner et al. 2023; TD-MPC2)."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def symlog(x: Tensor) -> Tensor:
    """sign(x) log(1 + |x|)."""
    return x.sign() * x.abs().log1p()


def symexp(x: Tensor) -> Tensor:
    """sign(x) (exp|x| - 1), the inverse of `symlog`."""
    return x.sign() * x.abs().expm1()


def two_hot(x: Float[Tensor, "*B"], bins: Float[Tensor, " K"]) -> Float[Tensor, "*B K"]:
    """Weights on the two evenly spaced bins around symlog(x), whose expectation is symlog(x).

    Values outside [bins[0], bins[-1]] go to the nearest end.
    """
    step = bins[1] - bins[0]
    position = ((symlog(x) - bins[0]) / step).clamp(0.0, len(bins) - 1.0)
    # A hat function around every bin: nothing is indexed, so that the top bin needs no neighbour and NaN stays NaN.
    distance = (position.unsqueeze(-1) - torch.arange(len(bins), dtype=x.dtype, device=x.device)).abs()
    return (1.0 - distance).clamp(min=0.0)


def two_hot_cross_entropy(
    logits: Float[Tensor, "*B K"], x: Float[Tensor, "*B"], bins: Float[Tensor, " K"]
) -> Float[Tensor, "*B"]:
    """Soft cross-entropy of the bin logits against `two_hot(x)`."""
    return -(two_hot(x, bins) * logits.log_softmax(-1)).sum(-1)


def two_hot_expectation(logits: Float[Tensor, "*B K"], bins: Float[Tensor, " K"]) -> Float[Tensor, "*B"]:
    """sum_k p_k b_k, still in symlog space."""
    return (logits.softmax(-1) * bins).sum(-1)
