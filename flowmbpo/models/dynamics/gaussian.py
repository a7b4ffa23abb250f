"""The Gaussian control: a residual mean with a state-dependent standard deviation."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from flowmbpo.config.dynamics import DynamicsDims, GaussianDynamicsConfig
from flowmbpo.models.dynamics.base import Dynamics, Transition, matched_network
from flowmbpo.nets.noise import standard_normal
from flowmbpo.nets.running import RunningStd


class GaussianDynamics(Dynamics):
    """s' = s + d, d ~ N(s_D mu, diag v) given that every group of d sums to 0; trained by its (beta-)NLL.

    `s_D` is the running std of the displacement per dimension (detached), so that the log-std bounds mean
    the same in every latent; v = (s_D std)^2 V / (V - 1) for groups of V, so that `std` is a coordinate's own where a
    group's coordinates vary alike. The condition keeps a sample on the simplex and, unlike a projection,
    leaves quiet coordinates quiet. beta-NLL (Seitzer et al. 2022) weighs each dimension by sg(std^(2 beta));
    beta 0 is the plain likelihood. Samples are reparameterised.
    """

    stochastic = True

    def __init__(self, config: GaussianDynamicsConfig, dims: DynamicsDims) -> None:
        super().__init__(config, dims)
        self.options = config
        self.network, self.hidden_units = matched_network(config, dims, extra_inputs=0, out_dim=2 * dims.latent_dim)
        self.scale = RunningStd(dims.latent_dim, config.scale_decay)

    def forward(
        self,
        s: Float[Tensor, "B D"],
        action: Float[Tensor, "B A"],
        task: Float[Tensor, "B E"],
        generator: torch.Generator | None = None,
    ) -> Float[Tensor, "B D"]:
        """One reparameterised sample of the next state; without a generator the state moved by d's mean."""
        mean, logstd = self._distribution(s, action, task)
        return self._sample(s, mean, logstd, generator)

    def step_loss(
        self, transition: Transition, generator: torch.Generator, *, need_next: bool
    ) -> tuple[Float[Tensor, " B"], Float[Tensor, "B D"] | None]:
        """beta-NLL of s_tgt - s_s given that its groups sum to 0, mean over the latent, without the constants."""
        displacement = transition.target - transition.source
        if self.training:
            self.scale.update(displacement, transition.valid)
        mean, logstd = self._distribution(transition.source, transition.action, transition.task)
        standardised = (displacement / self.scale.std - mean) * (-logstd).exp() / self.geometry.noise_gain
        nll = logstd + 0.5 * standardised.square()
        weight = (2.0 * self.options.beta * logstd.detach()).exp()
        unit = (self.geometry.noise_gain * self.scale.std).square().expand_as(mean)
        constraint = self.geometry.constraint_log_density(self.scale.std * mean, self._variance(logstd), unit, weight)
        s_next = self._sample(transition.source, mean, logstd, generator) if need_next else None
        return self.options.nll_weight * (weight * nll + constraint).mean(-1), s_next

    def _distribution(self, s: Tensor, action: Tensor, task: Tensor) -> tuple[Tensor, Tensor]:
        mean, raw = self.network(torch.cat([s, task, action], dim=-1)).chunk(2, dim=-1)
        low, high = self.options.min_logstd, self.options.max_logstd
        # Shifted so that the zero-initialised head starts at log-std 0: the displacement's own spread.
        start = math.atanh(-2.0 * low / (high - low) - 1.0) if low < 0.0 < high else 0.0
        return mean, low + 0.5 * (high - low) * ((raw + start).tanh() + 1.0)

    def _variance(self, logstd: Tensor) -> Tensor:
        """v: of each coordinate before the condition."""
        return (self.geometry.noise_gain * self.scale.std * logstd.exp()).square()

    def _sample(self, s: Tensor, mean: Tensor, logstd: Tensor, generator: torch.Generator | None) -> Tensor:
        variance = self._variance(logstd)
        displacement = self.scale.std * mean
        if generator is not None:
            displacement = displacement + variance.sqrt() * standard_normal(mean, generator)
        return self.geometry.move(s, self.geometry.condition(displacement, variance))
