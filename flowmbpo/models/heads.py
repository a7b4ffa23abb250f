"""What stands around the dynamics: identity encoder, reward heads, the critics' ensemble."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from jaxtyping import Float
from torch import Tensor, nn

from flowmbpo.config.model import CriticConfig, ScalarRewardConfig, TwoHotRewardConfig
from flowmbpo.models.task_context import TaskContext
from flowmbpo.nets.activations import use_activation_
from flowmbpo.nets.ensemble import EnsembleMLP
from flowmbpo.nets.mlp import normed_mlp
from flowmbpo.nets.running import ObservationNormalizer
from flowmbpo.nets.two_hot import symexp, two_hot_cross_entropy, two_hot_expectation


class IdentityEncoder(nn.Module):
    """z = o: no parameters. The task embedding, where there is one, reaches the other networks by itself."""

    def __init__(self, obs_dim: int) -> None:
        super().__init__()
        self.obs_dim = obs_dim

    def forward(self, x: Float[Tensor, "B O+E"]) -> Float[Tensor, "B O"]:
        """The observation of [o, e_task]."""
        return x[..., : self.obs_dim]


class NormalizedEncoder(nn.Module):
    """An encoder of [normalised o, e_task]."""

    def __init__(self, encoder: nn.Module, obs_dim: int, samples: int) -> None:
        super().__init__()
        self.normalizer = ObservationNormalizer(obs_dim, samples)
        self.encoder = encoder
        self.obs_dim = obs_dim

    def forward(self, x: Float[Tensor, "B O+E"]) -> Float[Tensor, "B D"]:
        """Encodings of [o, e_task]."""
        obs, task = x[..., : self.obs_dim], x[..., self.obs_dim :]
        encoded: Tensor = self.encoder(torch.cat([self.normalizer(obs), task], dim=-1))
        return encoded


class RewardHead(nn.Module, ABC):
    """Output, decoding and loss belong together: squared error on bin logits cannot be configured."""

    network: nn.Sequential

    def forward(self, inputs: Float[Tensor, "*B I"]) -> Float[Tensor, "*B"]:
        """The predicted reward for [z, task, action] rows."""
        return self.decode(self.network(inputs))

    @abstractmethod
    def decode(self, output: Float[Tensor, "*B K"]) -> Float[Tensor, "*B"]:
        """Reward from the network's raw output."""

    @abstractmethod
    def loss(self, inputs: Float[Tensor, "*B I"], reward: Float[Tensor, "*B"]) -> Float[Tensor, "*B"]:
        """Loss per sample."""


class ScalarReward(RewardHead):
    """One output and a squared error."""

    def __init__(self, config: ScalarRewardConfig, input_dim: int) -> None:
        super().__init__()
        self.network = normed_mlp(input_dim, config.units, 1, normed_output=False)

    def decode(self, output: Float[Tensor, "*B 1"]) -> Float[Tensor, "*B"]:
        """The output itself."""
        return output.squeeze(-1)

    def loss(self, inputs: Float[Tensor, "*B I"], reward: Float[Tensor, "*B"]) -> Float[Tensor, "*B"]:
        """(prediction - reward)^2."""
        error: Tensor = self(inputs) - reward
        return error.square()


class TwoHotReward(RewardHead):
    """`bins` logits in symlog space and a soft cross-entropy (TD-MPC2)."""

    bins: Tensor

    def __init__(self, config: TwoHotRewardConfig, input_dim: int) -> None:
        super().__init__()
        self.config = config
        self.network = normed_mlp(input_dim, config.units, config.bins, normed_output=False)
        self.register_buffer("bins", torch.linspace(config.low, config.high, config.bins), persistent=False)

    def decode(self, output: Float[Tensor, "*B K"]) -> Float[Tensor, "*B"]:
        """symexp of the expectation, or the expectation itself with `decode: symlog` (PWM's actor)."""
        expectation = two_hot_expectation(output, self.bins)
        return symexp(expectation) if self.config.decode == "symexp" else expectation

    def loss(self, inputs: Float[Tensor, "*B I"], reward: Float[Tensor, "*B"]) -> Float[Tensor, "*B"]:
        """Cross-entropy against the two-hot target."""
        return two_hot_cross_entropy(self.network(inputs), reward, self.bins)


class CriticEnsemble(nn.Module):
    """V_1..V_N(z, e_task), in units of the learning reward."""

    bins: Tensor

    def __init__(self, config: CriticConfig, latent_dim: int, task_dim: int) -> None:
        super().__init__()
        self.config = config
        outputs = config.bins or 1
        self.network = EnsembleMLP(
            config.ensemble, latent_dim + task_dim, config.units, outputs, zero_head=config.zero_init
        )
        use_activation_(self, config.activation)
        if config.bins is not None:
            bins = torch.linspace(-config.symlog_range, config.symlog_range, config.bins)
            self.register_buffer("bins", bins, persistent=False)

    def forward(self, z: Float[Tensor, "B D"], context: TaskContext) -> Float[Tensor, "N B"]:
        """Every member's value."""
        output: Tensor = self.network(context.append_to(z))
        return output.squeeze(-1) if self.config.bins is None else symexp(two_hot_expectation(output, self.bins))

    def loss(self, z: Float[Tensor, "B D"], context: TaskContext, target: Float[Tensor, " B"]) -> Float[Tensor, "N B"]:
        """Every member's loss per sample: squared error, or with `bins` the two-hot cross-entropy."""
        if self.config.bins is None:
            error: Tensor = self(z, context) - target
            return error.square()
        output: Tensor = self.network(context.append_to(z))
        loss: Tensor = two_hot_cross_entropy(output, target.expand(len(output), -1), self.bins)
        return loss

    def value(self, z: Float[Tensor, "B D"], context: TaskContext) -> Float[Tensor, " B"]:
        """The ensemble's value that targets bootstrap from: its minimum or mean, by config."""
        return self._reduced(z, context, self.config.reduction)

    def actor_value(self, z: Float[Tensor, "B D"], context: TaskContext) -> Float[Tensor, " B"]:
        """The ensemble's value that the actor and the planner climb."""
        return self._reduced(z, context, self.config.actor_reduction or self.config.reduction)

    def _reduced(self, z: Tensor, context: TaskContext, reduction: str) -> Tensor:
        values: Tensor = self(z, context)
        return values.amin(0) if reduction == "min" else values.mean(0)
