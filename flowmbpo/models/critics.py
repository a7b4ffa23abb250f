"""The value function: an ensemble trained by TD(lambda)."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn

from flowmbpo.models.config import CriticConfig
from flowmbpo.models.task_context import TaskContext
from flowmbpo.nets.ensemble import EnsembleMLP


class CriticEnsemble(nn.Module):
    """V_1..V_N(z, e_task), in units of the learning reward."""

    def __init__(self, config: CriticConfig, latent_dim: int, task_dim: int) -> None:
        super().__init__()
        self.config = config
        self.network = EnsembleMLP(config.ensemble, latent_dim + task_dim, config.units, 1, zero_head=config.zero_init)

    def forward(self, z: Float[Tensor, "B D"], context: TaskContext) -> Float[Tensor, "N B"]:
        """Every member's value."""
        values: Tensor = self.network(context.append_to(z))
        return values.squeeze(-1)

    def value(self, z: Float[Tensor, "B D"], context: TaskContext) -> Float[Tensor, " B"]:
        """The ensemble's value: its minimum or mean, by config."""
        values: Tensor = self(z, context)
        return values.amin(0) if self.config.reduction == "min" else values.mean(0)
