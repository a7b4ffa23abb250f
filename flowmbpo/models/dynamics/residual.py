"""The residual control: what a flow must beat before any gain is credited to flow matching."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from flowmbpo.config.dynamics import DynamicsDims, ResidualDynamicsConfig
from flowmbpo.models.dynamics.base import Dynamics, Transition, linear_headed, matched_network, widened_units


class ResidualDynamics(Dynamics):
    """s' = s + P f([s, e_task, a]), zero-initialised head."""

    def __init__(self, config: ResidualDynamicsConfig, dims: DynamicsDims) -> None:
        super().__init__(config, dims)
        if config.widen_nfe > 1:
            in_dim = dims.latent_dim + dims.task_dim + dims.action_dim
            self.hidden_units = widened_units(config, dims)
            self.network = linear_headed(config, in_dim, self.hidden_units, dims.latent_dim)
        else:
            self.network, self.hidden_units = matched_network(config, dims, extra_inputs=0, out_dim=dims.latent_dim)

    def forward(
        self,
        s: Float[Tensor, "B D"],
        action: Float[Tensor, "B A"],
        task: Float[Tensor, "B E"],
        generator: torch.Generator | None = None,
    ) -> Float[Tensor, "B D"]:
        """The next state; deterministic."""
        return self.geometry.move(s, self.network(torch.cat([s, task, action], dim=-1)))

    def step_loss(
        self, transition: Transition, generator: torch.Generator, *, need_next: bool
    ) -> tuple[Float[Tensor, " B"], Float[Tensor, "B D"] | None]:
        """Squared error of the next state."""
        s_next = self(transition.source, transition.action, transition.task)
        return self.endpoint_error(s_next, transition.target), s_next
