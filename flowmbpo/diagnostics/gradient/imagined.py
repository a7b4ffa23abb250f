"""Rewards that the model predicts from real start states, under the real actions or under the policy.

Letters: T steps, B rows, R replicas, D latent, A action.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from flowmbpo.data.batch import Batch
from flowmbpo.diagnostics.rollout.open_loop import draws_noise, predict_rewards
from flowmbpo.models.agent import Agent
from flowmbpo.models.task_context import TaskContext

Controls = Callable[[int, Float[Tensor, "B D"]], Float[Tensor, "B A"]]
"""Step and latents to the actions taken there."""


@dataclass(frozen=True)
class ImaginedRewards:
    """Plays the model from `batch.obs[0]`; real reward units, weighted by the predicted probability to be alive.

    Where the model or the sampled policy draws noise, the mean of `replicas` rollouts of each row.
    """

    agent: Agent
    generator: torch.Generator
    replicas: int

    @torch.no_grad()  # rewards are compared, nothing is differentiated
    def open_loop(self, batch: Batch) -> Float[Tensor, "T B"]:
        """Under the actions that were really taken."""
        replicas = self._replicas(batch, sampled=False)
        actions = batch.action.repeat(1, replicas, 1)
        return self._play(batch, replicas, lambda step, z: actions[step])

    @torch.no_grad()  # as above
    def closed_loop(self, batch: Batch, *, sampled: bool) -> Float[Tensor, "T B"]:
        """Under the policy's own actions on the imagined latents."""
        replicas = self._replicas(batch, sampled=sampled)
        context = self.agent.world_model.context(batch.task).repeat(replicas)
        noise = self.generator if sampled else None
        return self._play(batch, replicas, lambda step, z: self.agent.actor(z, context, noise))

    def _replicas(self, batch: Batch, *, sampled: bool) -> int:
        model = self.agent.world_model
        context = model.context(batch.task)
        drawn = sampled or draws_noise(model, model.encode(batch.obs[0], context), batch.action[0], context)
        return self.replicas if drawn else 1

    def _play(self, batch: Batch, replicas: int, controls: Controls) -> Float[Tensor, "T B"]:
        model = self.agent.world_model
        alone = model.context(batch.task)
        context: TaskContext = alone.repeat(replicas)
        state = model.encode(batch.obs[0], alone).repeat(replicas, 1)
        alive = torch.ones(len(state), device=state.device)
        rewards = []
        for step in range(len(batch.action)):
            z = model.latent(state)
            action = controls(step, z)
            reward = predict_rewards(self.agent, z, action, context)
            rewards.append((reward * alive).double().view(replicas, -1).mean(0))
            state = model.next(state, action, context, self.generator)
            alive = alive * model.continuation(model.latent(state), context)
        return torch.stack(rewards)
