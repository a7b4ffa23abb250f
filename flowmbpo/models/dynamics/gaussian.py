"""The Gaussian control: a residual mean with a state-dependent standard deviation."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from flowmbpo.config.dynamics import DynamicsDims, GaussianDynamicsConfig
from flowmbpo.models.dynamics.base import Dynamics, Transition, matched_network
from flowmbpo.nets.running import RunningStd


class GaussianDynamics(Dynamics):
    """s' = s + s_D (mu + std eps), trained by the (beta-)NLL of the scaled displacement.

    `s_D` is the running std of the displacement per dimension (detached), so that the log-std
    bounds mean the same in every latent. beta-NLL (Seitzer et al. 2022) weighs each dimension by
    sg(std^(2 beta)); beta 0 is the plain likelihood. Samples are reparameterised.
    """

    def __init__(self, config: GaussianDynamicsConfig, dims: DynamicsDims) -> None:
        super().__init__(config, dims)
        self.options = config
        self.network, self._hidden_units = matched_network(config, dims, extra_inputs=0, out_dim=2 * dims.latent_dim)
        self.scale = RunningStd(dims.latent_dim, config.scale_decay)

    @property
    def nfe(self) -> int:
        """One."""
        return 1

    @property
    def hidden_units(self) -> tuple[int, ...]:
        """Solved widths."""
        return self._hidden_units

    def forward(
        self,
        s: Float[Tensor, "B D"],
        action: Float[Tensor, "B A"],
        task: Float[Tensor, "B E"],
        generator: torch.Generator | None = None,
    ) -> Float[Tensor, "B D"]:
        """One reparameterised sample of the next state; without a generator its mean."""
        mean, logstd = self._distribution(s, action, task)
        return self._sample(s, mean, logstd, generator)

    def step_loss(
        self, transition: Transition, generator: torch.Generator, *, need_next: bool
    ) -> tuple[Float[Tensor, " B"], Float[Tensor, "B D"] | None]:
        """beta-NLL of (s_tgt - s_s) / s_D under N(mu, std^2), mean over the latent."""
        displacement = transition.target - transition.source
        if self.training:
            self.scale.update(displacement, transition.valid)
        mean, logstd = self._distribution(transition.source, transition.action, transition.task)
        standardised = (displacement / self.scale.std - mean) * (-logstd).exp()
        nll = logstd + 0.5 * standardised.square()
        weight = (2.0 * self.options.beta * logstd.detach()).exp()
        s_next = self._sample(transition.source, mean, logstd, generator) if need_next else None
        return self.options.nll_weight * (weight * nll).mean(-1), s_next

    def _distribution(self, s: Tensor, action: Tensor, task: Tensor) -> tuple[Tensor, Tensor]:
        mean, raw = self.network(torch.cat([s, task, action], dim=-1)).chunk(2, dim=-1)
        low, high = self.options.min_logstd, self.options.max_logstd
        # Shifted so that the zero-initialised head starts at log-std 0: the displacement's own spread.
        start = math.atanh(-2.0 * low / (high - low) - 1.0) if low < 0.0 < high else 0.0
        return mean, low + 0.5 * (high - low) * ((raw + start).tanh() + 1.0)

    def _sample(self, s: Tensor, mean: Tensor, logstd: Tensor, generator: torch.Generator | None) -> Tensor:
        if generator is not None:
            eps = torch.randn(mean.shape, generator=generator, dtype=mean.dtype, device=mean.device)
            # What P takes away of the variance is put back: the likelihood speaks of what a projected sample has.
            mean = mean + self.geometry.noise_gain * logstd.exp() * eps
        return self.geometry.move(s, self.scale.std * mean)
