"""A bound on the spectral norm of a linear layer."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.utils import parametrize


class SpectralCap(nn.Module):
    """W / max(1, sigma(W)): weights whose spectral norm is held near 1 (Gouk et al. 2021, arXiv 1804.04368).

    The estimate of sigma is never above it: a weight that grows quickly is above 1 until it is caught up with (a
    64 x 128 layer under Adam at 1e-3, one forward pass per step: up to 1.29).

    torch's own `spectral_norm` divides by sigma always: a head that starts at zero becomes NaN, and any
    other is held at a norm of exactly 1, where a displacement must be able to shrink. sigma is followed by
    one step of power iteration (Miyato et al. 2018) per forward pass in training mode; in eval mode the
    vectors rest. They are buffers: part of a checkpoint, no parameters. The gradient passes through sigma.
    """

    left: Tensor
    right: Tensor

    def __init__(self, weight: Float[Tensor, "O I"]) -> None:
        super().__init__()
        rows, columns = weight.shape
        self.register_buffer("left", _start(rows, weight))
        self.register_buffer("right", _start(columns, weight))

    def forward(self, weight: Float[Tensor, "O I"]) -> Float[Tensor, "O I"]:
        """The weight in use."""
        if self.training:
            with torch.no_grad():  # the singular vectors are an estimate, not a path of the gradient
                # New tensors, never in place: an earlier pass of the same graph may have saved the old ones.
                self.left = _unit(torch.mv(weight, self.right), self.left)
                self.right = _unit(torch.mv(weight.T, self.left), self.right)
        sigma = torch.dot(self.left, torch.mv(weight, self.right))
        return weight / sigma.clamp(min=1.0)


def cap_spectral_norm_(linear: nn.Linear) -> None:
    """Put a `SpectralCap` on the layer's weight; `linear.weight` is then the capped one."""
    parametrize.register_parametrization(linear, "weight", SpectralCap(linear.weight))


def _start(size: int, like: Tensor) -> Tensor:
    """A unit vector without symmetry, the same for every seed: no draw, and never orthogonal by construction."""
    vector = torch.sin(1.0 + torch.arange(size, dtype=like.dtype, device=like.device))
    unit: Tensor = vector / vector.norm()
    return unit


def _unit(vector: Tensor, otherwise: Tensor) -> Tensor:
    """The direction of `vector`, or `otherwise` where it has none (a weight that is still zero)."""
    norm = vector.norm()
    return torch.where(norm > 0.0, vector / norm, otherwise)
