"""The encoder of observation-as-state models."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn


class IdentityEncoder(nn.Module):
    """z = o: no parameters. The task embedding, where there is one, reaches the other networks by itself."""

    def __init__(self, obs_dim: int) -> None:
        super().__init__()
        self.obs_dim = obs_dim

    def forward(self, x: Float[Tensor, "B O+E"]) -> Float[Tensor, "B O"]:
        """The observation of [o, e_task]."""
        return x[..., : self.obs_dim]
