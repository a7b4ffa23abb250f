"""Flow-matching dynamics with the current state as the source (rectified flow, Liu et al. 2022)."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from flowmbpo.config.dynamics import DynamicsDims, FlowDynamicsConfig
from flowmbpo.flows.paths import sample_tau
from flowmbpo.models.dynamics.base import Dynamics, Transition
from flowmbpo.models.dynamics.velocity import VelocityField
from flowmbpo.nets.noise import standard_normal


class FlowDynamics(Dynamics):
    """s' = s + integral over tau of v(s_tau, a, tau, e_task), v matched to s_tgt - s_s.

    With s_tau = (1 - tau) s_s + tau s_tgt the loss is
    `fm_weight (v(s_tau, a, tau) - v*)^2 + endpoint_weight (s' - s_tgt)^2`, v* = s_tgt - s_s.
    `fm_source_grad` names what carries gradient into s_s through the matching term: nothing (`none`), s_tau (`path`; v*
    stopped, for a live target rewards shrinking displacement), or s_tau and v* (`full`). `source_noise` sigma starts
    from s_s + sigma P eps, in training and imagination.
    """

    def __init__(self, config: FlowDynamicsConfig, dims: DynamicsDims) -> None:
        super().__init__(config, dims)
        self.options = config
        self.velocity = VelocityField(config, dims, self.geometry)
        self.stochastic = config.source_noise > 0.0 or config.substep_noise > 0.0
        self.nfe = config.nfe
        self.hidden_units = self.velocity.hidden_units

    def forward(
        self,
        s: Float[Tensor, "B D"],
        action: Float[Tensor, "B A"],
        task: Float[Tensor, "B E"],
        generator: torch.Generator | None = None,
    ) -> Float[Tensor, "B D"]:
        """The next state: the ODE integrated from (optionally noisy) s."""
        return self._integrate(self._noisy(s, generator), action, task, generator)

    def step_loss(
        self, transition: Transition, generator: torch.Generator, *, need_next: bool
    ) -> tuple[Float[Tensor, " B"], Float[Tensor, "B D"] | None]:
        """Flow matching, and the endpoint error where it has a weight."""
        start = self._noisy(transition.source, generator)
        loss = self.options.fm_weight * self._matching_error(transition, start, generator)
        s_next = None
        if need_next or self.options.endpoint_weight > 0.0:
            s_next = self._integrate(start, transition.action, transition.task, generator)
        if self.options.endpoint_weight > 0.0 and s_next is not None:
            loss = loss + self.options.endpoint_weight * self.endpoint_error(s_next, transition.target)
        return loss, s_next

    def _integrate(self, start: Tensor, action: Tensor, task: Tensor, generator: torch.Generator | None) -> Tensor:
        end = self.velocity.flow(start, (), (task, action), generator)
        return self.geometry.move(start, end - start)

    def _noisy(self, s: Tensor, generator: torch.Generator | None) -> Tensor:
        if self.options.source_noise == 0.0 or generator is None:
            return s
        return self.geometry.move(s, self.options.source_noise * standard_normal(s, generator))

    def _matching_error(self, transition: Transition, start: Tensor, generator: torch.Generator) -> Tensor:
        target = transition.target
        tau = sample_tau(target, self.options.tau_sampling, generator)
        path_start = start.detach() if self.options.fm_source_grad == "none" else start
        displacement = target - (start if self.options.fm_source_grad == "full" else start.detach())
        s_tau = torch.lerp(path_start, target, tau)
        error: Tensor = self.velocity((s_tau, transition.task, transition.action), tau) - displacement
        if self.config.loss_space == "latent":
            # In logit geometry: the error of dz/dtau at this point of the path, which is a metric, not a path.
            error = self.geometry.pushforward(s_tau.detach(), error)
        return self.scaled(error).square().mean(-1)
