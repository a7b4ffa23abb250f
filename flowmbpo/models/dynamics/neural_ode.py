"""The neural-ODE control: the flow's network and compute, without flow matching."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from flowmbpo.config.dynamics import DynamicsDims, NeuralODEDynamicsConfig
from flowmbpo.models.dynamics.base import Dynamics, Transition
from flowmbpo.models.dynamics.velocity import VelocityField


class NeuralODEDynamics(Dynamics):
    """s' = s + integral of v(s_tau, a, tau, e_task) dtau, trained on the endpoint only."""

    def __init__(self, config: NeuralODEDynamicsConfig, dims: DynamicsDims) -> None:
        super().__init__(config, dims)
        self.velocity = VelocityField(config, dims, self.geometry)
        self.stochastic = config.substep_noise > 0.0
        self.nfe = config.nfe
        self.hidden_units = self.velocity.hidden_units

    def forward(
        self,
        s: Float[Tensor, "B D"],
        action: Float[Tensor, "B A"],
        task: Float[Tensor, "B E"],
        generator: torch.Generator | None = None,
    ) -> Float[Tensor, "B D"]:
        """The next state; `generator` only feeds the optional noise per substep."""
        end = self.velocity.flow(s, (), (task, action), generator)
        return self.geometry.move(s, end - s)

    def step_loss(
        self, transition: Transition, generator: torch.Generator, *, need_next: bool
    ) -> tuple[Float[Tensor, " B"], Float[Tensor, "B D"] | None]:
        """Squared error of the integrated state."""
        s_next = self(transition.source, transition.action, transition.task, generator)
        return self.endpoint_error(s_next, transition.target), s_next
