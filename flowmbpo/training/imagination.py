"""Rollouts of the actor inside the world model, with the gradient path through it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from flowmbpo.models.actors.base import Actor
from flowmbpo.models.task_context import TaskContext
from flowmbpo.models.world_model import WorldModel


@dataclass(frozen=True)
class Imagination:
    """H imagined steps from B start states.

    `z[h]` for h = 0..H, `rewards[h]` the learning reward of leaving z[h], `continues[h]` the
    probability that the episode goes on past that step.
    """

    z: Float[Tensor, "H+1 B D"]
    actions: Float[Tensor, "H B A"]
    rewards: Float[Tensor, "H B"]
    continues: Float[Tensor, "H B"]


def imagine(
    model: WorldModel,
    actor: Actor,
    start: Float[Tensor, "B D"],
    context: TaskContext,
    *,
    horizon: int,
    generator: torch.Generator,
    actor_input_gradient: Literal["through", "detached"] = "through",
) -> Imagination:
    """Roll the actor out for `horizon` macro steps (PWM's first-order gradient path).

    `detached` cuts the actor's input, as PWM does: the gradient then leaves out da/dz, a bias.
    """
    state = start
    latents = [model.latent(start)]
    actions: list[Tensor] = []
    for _ in range(horizon):
        z = latents[-1]
        action = actor(z if actor_input_gradient == "through" else z.detach(), context, generator)
        state = model.next(state, action, context, generator)
        actions.append(action)
        latents.append(model.latent(state))
    z = torch.stack(latents)
    taken = torch.stack(actions)
    every = context.repeat(horizon)
    shape = (horizon, start.shape[0])
    rewards = model.reward(z[:-1].flatten(0, 1), taken.flatten(0, 1), every).view(shape)
    continues = model.continuation(z[1:].flatten(0, 1), every).view(shape)
    return Imagination(z, taken, rewards, continues)
