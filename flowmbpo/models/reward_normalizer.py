"""Real rewards to learning rewards and back."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from flowmbpo.nets.running import RunningMoments

Normalization = Literal["scale", "standardize", "none"]


class RewardNormalizer(nn.Module):
    """`scale`: r / running RMS. `standardize`: (r - mean) / std (PWM's). `none`: r.

    Scaling alone keeps 0 at 0, which is what a terminated state is worth; removing the mean makes
    dying average, so it belongs to tasks that cannot end (it is kept as PWM's published choice).
    PWM's clip to +-5 is left out: it hides exactly the rewards that matter.
    """

    def __init__(self, mode: Normalization) -> None:
        super().__init__()
        self.mode = mode
        self.moments = RunningMoments()

    def update(self, reward: Float[Tensor, "..."]) -> None:
        """Add newly collected real rewards."""
        self.moments.update(reward)

    def forward(self, reward: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """Learning rewards."""
        offset, scale = self._affine()
        return (reward - offset) / scale

    def inverse(self, reward: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """Real rewards of learning rewards."""
        offset, scale = self._affine()
        return reward * scale + offset

    def _affine(self) -> tuple[Tensor, Tensor]:
        one = torch.ones((), device=self.moments.total.device)
        if self.mode == "none":
            return torch.zeros_like(one), one
        if self.mode == "scale":
            return torch.zeros_like(one), self.moments.rms
        return self.moments.mean, self.moments.std
