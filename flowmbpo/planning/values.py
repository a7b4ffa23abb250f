"""What a sequence of actions is worth in a world model, and who proposes some of them.

Letters: B sequences, H horizon, D latent, A action.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from jaxtyping import Float
from torch import Tensor

from flowmbpo.models.agent import Agent
from flowmbpo.models.task_context import TaskContext
from flowmbpo.models.world_model import WorldModel
from flowmbpo.training.returns import discounted_return


class Objective(ABC):
    """sum_{t<H} gamma^t c_t r(z_t, a_t) + gamma^H c_H V(z_H) of an action sequence.

    c_t is the probability that the episode has not ended before step t, by the world model's termination
    head: 1 where it has none. `name` says in results whose values these are.
    """

    name: str

    def __init__(self, model: WorldModel) -> None:
        self.model = model

    @abstractmethod
    def policy(
        self, z: Float[Tensor, "B D"], context: TaskContext, generator: torch.Generator | None
    ) -> Float[Tensor, "B A"]:
        """Masked actions in [-1, 1] that are worth trying: samples, or deterministic without a generator."""

    @abstractmethod
    def reward(
        self, z: Float[Tensor, "B D"], action: Float[Tensor, "B A"], context: TaskContext
    ) -> Float[Tensor, " B"]:
        """Reward of `action` at latent z, in the units of `terminal`."""

    @abstractmethod
    def terminal(
        self, z: Float[Tensor, "B D"], context: TaskContext, generator: torch.Generator
    ) -> Float[Tensor, " B"]:
        """Value of the last latent."""

    @abstractmethod
    def gamma(self, context: TaskContext) -> Float[Tensor, " B"]:
        """Discount of every row."""

    def propose(
        self, start: Float[Tensor, "B D"], context: TaskContext, horizon: int, generator: torch.Generator
    ) -> Float[Tensor, "H B A"]:
        """Actions of the policy as it goes through the model from the states `start`."""
        state = start
        actions: list[Tensor] = []
        for step in range(horizon):
            if step:
                state = self.model.next(state, actions[-1], context, generator)
            actions.append(self.policy(self.model.latent(state), context, generator))
        return torch.stack(actions)

    def values(
        self,
        start: Float[Tensor, "B D"],
        actions: Float[Tensor, "H B A"],
        context: TaskContext,
        generator: torch.Generator,
    ) -> Float[Tensor, " B"]:
        """The value of each sequence from its state of `start`; stochastic dynamics draw from `generator`."""
        state, z = start, self.model.latent(start)
        rewards, continues = [], []
        for action in actions:
            rewards.append(self.reward(z, action, context))
            state = self.model.next(state, action, context, generator)
            z = self.model.latent(state)
            continues.append(self.model.continuation(z, context))
        terminal = self.terminal(z, context, generator)
        return discounted_return(torch.stack(rewards), terminal, torch.stack(continues), self.gamma(context))


class CriticObjective(Objective):
    """The agent's own reward head, critic and actor, in units of the learning reward."""

    name = "critic"

    def __init__(self, agent: Agent, gamma: float | None) -> None:
        """`gamma` None: each task's own."""
        super().__init__(agent.world_model)
        self._actor = agent.actor
        self._critic = agent.critic
        self._gamma = gamma

    def policy(
        self, z: Float[Tensor, "B D"], context: TaskContext, generator: torch.Generator | None
    ) -> Float[Tensor, "B A"]:
        """The actor, with the noise that it was trained with."""
        action: Tensor = self._actor(z, context, generator)
        return action

    def reward(
        self, z: Float[Tensor, "B D"], action: Float[Tensor, "B A"], context: TaskContext
    ) -> Float[Tensor, " B"]:
        """The learning reward."""
        return self.model.reward(z, action, context)

    def terminal(
        self, z: Float[Tensor, "B D"], context: TaskContext, generator: torch.Generator
    ) -> Float[Tensor, " B"]:
        """The critic ensemble's value: its minimum or mean, as trained."""
        return self._critic.value(z, context)

    def gamma(self, context: TaskContext) -> Float[Tensor, " B"]:
        """The one that the critic was trained with."""
        return context.discount if self._gamma is None else torch.full_like(context.discount, self._gamma)
