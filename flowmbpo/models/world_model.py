"""The latent world model: encode, next, reward, step. Algorithms own rollouts and losses over time.

Letters: B batch, O observation, D latent, A action, E task embedding.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from flowmbpo.config.dynamics import DynamicsDims
from flowmbpo.config.model import ModelConfig
from flowmbpo.models.build import build_dynamics, build_encoder, build_reward
from flowmbpo.models.heads import NormalizedEncoder
from flowmbpo.models.task_context import TaskContext, TaskTable
from flowmbpo.nets.activations import use_activation_
from flowmbpo.nets.mlp import normed_mlp
from flowmbpo.spec import EnvSpec


class WorldModel(nn.Module):
    """Encoder, dynamics, reward head, and an optional termination head (PWM, arXiv 2407.02466).

    The state `s` is what the dynamics move (the latent, its centred logits or the observation, see
    `flowmbpo.flows.simplex`); every head reads the latent `z = latent(s)`. Actions are masked to
    the task's own dimensions before any network sees them.
    """

    def __init__(self, config: ModelConfig, spec: EnvSpec) -> None:
        super().__init__()
        self.config = config
        self.tasks = TaskTable(spec, config.task_dim)
        self.encoder = build_encoder(config.encoder, spec, config.task_dim, config.latent_dim)
        dims = DynamicsDims(config.latent_dim, config.simnorm_dim, config.task_dim, spec.action_dim)
        self.dynamics = build_dynamics(config.dynamics, dims)
        self.geometry = self.dynamics.geometry
        self.reward_head = build_reward(config.reward, config.latent_dim + config.task_dim + spec.action_dim)
        self.termination_head = (
            normed_mlp(config.latent_dim + config.task_dim, config.termination.units, 1, normed_output=False)
            if config.termination is not None
            else None
        )
        self.decoder = (
            normed_mlp(config.latent_dim + config.task_dim, config.decoder.units, spec.obs_dim, normed_output=False)
            if config.decoder is not None
            else None
        )
        use_activation_(self, config.activation)

    def context(self, task: Int[Tensor, " B"]) -> TaskContext:
        """Embedding, action mask and discount of each row's task."""
        context: TaskContext = self.tasks(task)
        return context

    def encode(self, obs: Float[Tensor, "B O"], context: TaskContext) -> Float[Tensor, "B D"]:
        """The state of an observation."""
        return self.geometry.from_logits(self.encoder(context.append_to(obs)))

    def observe(self, obs: Float[Tensor, "N O"]) -> None:
        """Newly collected observations, for the statistics by which they are normalised (if they are)."""
        if isinstance(self.encoder, NormalizedEncoder):
            self.encoder.normalizer.update(obs)

    def normalized(self, obs: Float[Tensor, "*B O"]) -> Float[Tensor, "*B O"]:
        """Observations as the encoder sees them."""
        if not isinstance(self.encoder, NormalizedEncoder):
            return obs
        normalized: Tensor = self.encoder.normalizer(obs)
        return normalized

    def decode(self, z: Float[Tensor, "B D"], context: TaskContext) -> Float[Tensor, "B O"]:
        """The normalised observation of latent z; needs a decoder."""
        assert self.decoder is not None
        obs: Tensor = self.decoder(context.append_to(z))
        return obs

    def latent(self, s: Float[Tensor, "... D"]) -> Float[Tensor, "... D"]:
        """The latent z of a state."""
        return self.geometry.latent(s)

    def next(
        self,
        s: Float[Tensor, "B D"],
        action: Float[Tensor, "B A"],
        context: TaskContext,
        generator: torch.Generator | None = None,
    ) -> Float[Tensor, "B D"]:
        """One macro step; stochastic dynamics draw from `generator`; without one no noise is drawn."""
        s_next: Tensor = self.dynamics(s, action * context.action_mask, context.embedding, generator)
        return s_next

    def reward(
        self, z: Float[Tensor, "B D"], action: Float[Tensor, "B A"], context: TaskContext
    ) -> Float[Tensor, " B"]:
        """Predicted learning reward of taking `action` at latent z."""
        reward: Tensor = self.reward_head(self.reward_inputs(z, action, context))
        return reward

    def reward_inputs(
        self, z: Float[Tensor, "B D"], action: Float[Tensor, "B A"], context: TaskContext
    ) -> Float[Tensor, "B I"]:
        """[z, task, action], the order of TD-MPC2 and of published weights."""
        return torch.cat([z, context.embedding, action * context.action_mask], dim=-1)

    def termination_logit(self, z_next: Float[Tensor, "B D"], context: TaskContext) -> Float[Tensor, " B"]:
        """Logit of the step into latent z_next having ended the task; needs a termination head."""
        assert self.termination_head is not None
        logit: Tensor = self.termination_head(context.append_to(z_next))
        return logit.squeeze(-1)

    def continuation(self, z_next: Float[Tensor, "B D"], context: TaskContext) -> Float[Tensor, " B"]:
        """Probability of the episode going on past the step into z_next; 1 without a termination head."""
        if self.termination_head is None:
            return z_next.new_ones(z_next.shape[0])
        return (-self.termination_logit(z_next, context)).sigmoid()

    def step(
        self,
        s: Float[Tensor, "B D"],
        action: Float[Tensor, "B A"],
        context: TaskContext,
        generator: torch.Generator | None = None,
    ) -> tuple[Float[Tensor, "B D"], Float[Tensor, " B"]]:
        """Next state and predicted reward."""
        return self.next(s, action, context, generator), self.reward(self.latent(s), action, context)
