"""PWM's dynamics."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from flowmbpo.config.dynamics import DynamicsDims, MLPDynamicsConfig
from flowmbpo.models.dynamics.base import Dynamics, Transition, widened_units
from flowmbpo.nets.mlp import normed_mlp


class MLPDynamics(Dynamics):
    """z' = SimNorm(LayerNorm(f([s, e_task, a]))) (TD-MPC2; PWM eq. 4).

    Where the observation is the state, z' = f([s, e_task, a]).
    In logit geometry the network reads and writes centred logits; the map on z is the same family.
    """

    def __init__(self, config: MLPDynamicsConfig, dims: DynamicsDims) -> None:
        super().__init__(config, dims)
        in_dim = dims.latent_dim + dims.task_dim + dims.action_dim
        self.hidden_units = widened_units(config, dims)
        normed = config.geometry != "euclidean"  # an observation has no norm to be brought to
        self.network = normed_mlp(in_dim, self.hidden_units, dims.latent_dim, normed_output=normed)

    def forward(
        self,
        s: Float[Tensor, "B D"],
        action: Float[Tensor, "B A"],
        task: Float[Tensor, "B E"],
        generator: torch.Generator | None = None,
    ) -> Float[Tensor, "B D"]:
        """The next state; deterministic."""
        return self.geometry.from_logits(self.network(torch.cat([s, task, action], dim=-1)))

    def step_loss(
        self, transition: Transition, generator: torch.Generator, *, need_next: bool
    ) -> tuple[Float[Tensor, " B"], Float[Tensor, "B D"] | None]:
        """(z' - sg(z_tgt))^2."""
        s_next = self(transition.source, transition.action, transition.task)
        return self.endpoint_error(s_next, transition.target), s_next
