"""Flow-matching dynamics with a noise source: a conditional distribution of the next state."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from flowmbpo.config.dynamics import DynamicsDims, FlowDynamicsConfig
from flowmbpo.flows.paths import sample_tau
from flowmbpo.models.dynamics.base import Dynamics, Transition
from flowmbpo.models.dynamics.velocity import VelocityField
from flowmbpo.nets.noise import standard_normal
from flowmbpo.nets.running import RunningStd


class GenerativeFlowDynamics(Dynamics):
    """s' = s + s_D x_K, x from sigma eps by dx/dtau = v(s, a, x, tau) (Lipman et al. 2023).

    `s_D` is the running std of the displacement per dimension, detached (without it the noise drowns a displacement a
    hundred times smaller). d = (s_tgt - s_s) / s_D, x_0 = sigma eps, x_tau = (1 - tau) x_0 + tau d, loss
    `fm_weight (v - sg(d - x_0))^2`. x is not tangent (the scale differs between a group's coordinates); P is applied to
    s_D x_K, which leaves a true displacement as it is. There is no endpoint loss: it would collapse the noise to the
    mean. The source carries gradient through the network's input only (`fm_source_grad: path`), or not at all (`none`).
    """

    stochastic = True

    def __init__(self, config: FlowDynamicsConfig, dims: DynamicsDims) -> None:
        super().__init__(config, dims)
        self.options = config
        self.velocity = VelocityField(config, dims, self.geometry, extra_inputs=dims.latent_dim, tangent=False)
        self.scale = RunningStd(dims.latent_dim, config.scale_decay)
        self.nfe = config.nfe
        self.hidden_units = self.velocity.hidden_units

    def forward(
        self,
        s: Float[Tensor, "B D"],
        action: Float[Tensor, "B A"],
        task: Float[Tensor, "B E"],
        generator: torch.Generator | None = None,
    ) -> Float[Tensor, "B D"]:
        """One sample of the next state; without a generator the image of zero noise."""
        x = self.velocity.flow(self._noise(s, generator), (s, task, action), (), generator)
        return self.geometry.move(s, self.scale.std * x)

    def step_loss(
        self, transition: Transition, generator: torch.Generator, *, need_next: bool
    ) -> tuple[Float[Tensor, " B"], Float[Tensor, "B D"] | None]:
        """Flow matching in the scaled displacement."""
        displacement = (transition.target - transition.source).detach()
        if self.training:
            self.scale.update(displacement, transition.valid)
        d = displacement / self.scale.std
        x_0 = self._noise(d, generator)
        tau = sample_tau(d, self.options.tau_sampling, generator)
        x_tau = torch.lerp(x_0, d, tau)
        source = transition.source.detach() if self.options.fm_source_grad == "none" else transition.source
        inputs = (source, transition.task, transition.action, x_tau)
        error = self.velocity(inputs, tau) - (d - x_0)
        s_next = None
        if need_next:
            s_next = self(transition.source, transition.action, transition.task, generator)
        return self.options.fm_weight * error.square().mean(-1), s_next

    def _noise(self, like: Tensor, generator: torch.Generator | None) -> Tensor:
        if generator is None:
            return torch.zeros_like(like)
        return self.options.noise_std * standard_normal(like, generator)
