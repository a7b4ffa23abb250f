"""Open-loop predictions: the real actions of recorded windows, played inside the model.

Letters: T steps, B windows, D latent, A action.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from flowmbpo.data.batch import Batch
from flowmbpo.models.agent import Agent
from flowmbpo.models.heads import TwoHotReward
from flowmbpo.models.task_context import TaskContext
from flowmbpo.models.world_model import WorldModel
from flowmbpo.nets.two_hot import symexp


@dataclass(frozen=True)
class RealWindows:
    """Recorded windows as the model sees them: states, latents and contexts of their observations."""

    batch: Batch
    context: TaskContext
    states: Float[Tensor, "T+1 B D"]
    z: Float[Tensor, "T+1 B D"]


@torch.no_grad()  # real experience is encoded to be compared with, nothing is learnt from it
def encode_windows(model: WorldModel, batch: Batch) -> RealWindows:
    """Encode every observation of the windows."""
    context = model.context(batch.task)
    steps, width = batch.obs.shape[:2]
    states = model.encode(batch.obs.flatten(0, 1), context.repeat(steps)).view(steps, width, -1)
    return RealWindows(batch, context, states, model.latent(states))


@torch.no_grad()  # errors are measured, not trained on
def unroll(
    model: WorldModel,
    start: Float[Tensor, "B D"],
    action: Float[Tensor, "T B A"],
    context: TaskContext,
    generator: torch.Generator | None = None,
) -> Float[Tensor, "T+1 B D"]:
    """Latents of the model's own rollout from the states `start`; without a generator its deterministic step."""
    state = start
    latents = [model.latent(state)]
    for taken in action:
        state = model.next(state, taken, context, generator)
        latents.append(model.latent(state))
    return torch.stack(latents)


@torch.no_grad()  # a figure for people
def predict_rewards(
    agent: Agent, z: Float[Tensor, "B D"], action: Float[Tensor, "B A"], context: TaskContext
) -> Float[Tensor, " B"]:
    """Predicted rewards in the environment's own units."""
    model = agent.world_model
    learning = model.reward(z, action, context)
    head = model.reward_head
    if isinstance(head, TwoHotReward) and head.config.decode == "symlog":  # PWM's actor maximises symlog rewards
        learning = symexp(learning)
    return agent.reward_normalizer.inverse(learning)


@torch.no_grad()  # a probe of the model, not a loss
def draws_noise(model: WorldModel, start: Float[Tensor, "B D"], action: Float[Tensor, "B A"], ctx: TaskContext) -> bool:
    """Whether a step of the dynamics depends on its generator: two draws from the same states differ."""
    first, second = (model.next(start, action, ctx, torch.Generator(start.device).manual_seed(seed)) for seed in (0, 1))
    return not torch.equal(first, second)
