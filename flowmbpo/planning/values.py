"""What a sequence of actions is worth in a world model, and who proposes some of them.

Letters: B sequences, H horizon, D latent, A action.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from flowmbpo.models.agent import Agent
from flowmbpo.models.task_context import TaskContext
from flowmbpo.models.world_model import WorldModel
from flowmbpo.training.returns import discounted_return

Policy = Callable[[Float[Tensor, "B D"], TaskContext, torch.Generator | None], Float[Tensor, "B A"]]
Reward = Callable[[Float[Tensor, "B D"], Float[Tensor, "B A"], TaskContext], Float[Tensor, " B"]]
Terminal = Callable[[Float[Tensor, "B D"], TaskContext, torch.Generator], Float[Tensor, " B"]]


@dataclass
class Objective:
    """sum_{t<H} gamma^t c_t r(z_t, a_t) + gamma^H c_H V(z_H) of an action sequence.

    c_t is the probability that the episode has not ended before step t, by the world model's termination
    head: 1 where it has none. `name` says in results whose values these are.
    """

    name: str
    model: WorldModel
    policy: Policy
    """Masked actions in [-1, 1] that are worth trying: samples, or deterministic without a generator."""
    reward: Reward
    """r, in the units of `terminal`."""
    terminal: Terminal
    """V, the value of the last latent."""
    gamma: Callable[[TaskContext], Float[Tensor, " B"]]
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


def critic_objective(agent: Agent, gamma: float | None) -> Objective:
    """The agent's own actor (with the noise of its training), reward head and critic, in units of the learning reward.

    `gamma` is the one that the critic was trained with; None: each task's own.
    """
    return Objective(
        name="critic",
        model=agent.world_model,
        policy=agent.actor,
        reward=agent.world_model.reward,
        terminal=lambda z, context, generator: agent.critic.actor_value(z, context),
        gamma=lambda context: context.discount if gamma is None else torch.full_like(context.discount, gamma),
    )
