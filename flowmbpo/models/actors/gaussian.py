"""PWM's policy."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

from flowmbpo.config.actors import GaussianActorConfig
from flowmbpo.models.actors.base import Action, Actor, tanh_log_det
from flowmbpo.models.task_context import TaskContext
from flowmbpo.nets.mlp import policy_mlp
from flowmbpo.nets.noise import standard_normal


class GaussianActor(Actor):
    """a = tanh(mu(z, e_task) + std eps), std state-independent with a floor."""

    def __init__(self, config: GaussianActorConfig, latent_dim: int, task_dim: int, action_dim: int) -> None:
        super().__init__(config)
        self.options = config
        self.mean = policy_mlp(
            latent_dim + task_dim, config.units, action_dim, last_layer_scale=config.last_layer_scale
        )
        self.logstd = nn.Parameter(torch.full((action_dim,), config.init_logstd))
        self.hidden_units = config.units

    def preactivation(self, z: Float[Tensor, "B D"], context: TaskContext, generator: torch.Generator | None) -> Action:
        """mu + std eps."""
        mean: Tensor = self.mean(torch.cat([z, context.embedding], dim=-1))
        return mean if generator is None else mean + self.logstd.exp() * standard_normal(mean, generator)

    def sample_with_log_prob(
        self, z: Float[Tensor, "B D"], context: TaskContext, generator: torch.Generator
    ) -> tuple[Action, Float[Tensor, " B"]]:
        """Exact: the noise floor only widens the Gaussian."""
        mean: Tensor = self.mean(torch.cat([z, context.embedding], dim=-1))
        std = (self.logstd.exp().square() + self.config.noise_floor**2).sqrt()
        eps = standard_normal(mean, generator)
        u = mean + std * eps
        log_normal = -0.5 * eps.square() - std.log() - 0.5 * math.log(2.0 * math.pi)
        mask = context.action_mask
        return u.tanh() * mask, (log_normal * mask).sum(-1) - tanh_log_det(u, mask)

    @torch.no_grad()
    def clamp_(self) -> None:
        """Keep the log-std at or above its floor."""
        self.logstd.clamp_(min=self.options.min_logstd)
