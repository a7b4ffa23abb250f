"""The logistic function, the same bits in a batch of any size."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def logistic(x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """1 / (1 + exp(-x)) as (1 + tanh(x/2)) / 2, to absolute rounding.

    On the CPU `torch.sigmoid` rounds the rows that do not fill a vector register otherwise than the
    rest, so a copy's reward would depend on how many copies run beside it.
    """
    return 0.5 + 0.5 * torch.tanh(0.5 * x)
