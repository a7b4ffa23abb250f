"""What stands around the dynamics: identity encoder, reward heads, the critics' ensemble."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from jaxtyping import Float
from torch import Tensor, nn

from flowmbpo.config.model import CriticConfig, ScalarRewardConfig, TwoHotRewardConfig
from flowmbpo.models.task_context import TaskContext
from flowmbpo.nets.ensemble import EnsembleMLP
from flowmbpo.nets.mlp import normed_mlp
from flowmbpo.nets.two_hot import symexp, two_hot_cross_entropy, two_hot_expectation


class IdentityEncoder(nn.Module):
    """z = o: no parameters. The task embedding, where there is one, reaches the other networks by itself."""

    def __init__(self, obs_dim: int) -> None:
        super().__init__()
        self.obs_dim = obs_dim

    def forward(self, x: Float[Tensor, "B O+E"]) -> Float[Tensor, "B O"]:
        """The observation of [o, e_task]."""
        return x[..., : self.obs_dim]


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
