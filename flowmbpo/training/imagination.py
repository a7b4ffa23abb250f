"""Rollouts inside the world model, and how many steps of them it can be trusted for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from flowmbpo.data.batch import Batch
from flowmbpo.models.actors.base import Actor
from flowmbpo.models.open_loop import encode_windows, squared_errors, unroll_samples
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


@torch.no_grad()  # a measurement: nothing is trained on it
def k_step_errors(
    model: WorldModel, batch: Batch, generator: torch.Generator
) -> tuple[Float[Tensor, " H"], Float[Tensor, " H"]]:
    """Mean squared latent error after k = 1 .. H recorded actions, of the model and of predicting no change.

    Autoregressive from the encoding of the first observation, against the encodings of the real ones,
    on z; windows that have ended before k do not count (NaN where none is left). Stochastic dynamics
    are judged by the mean of their samples (`unroll_samples`); others draw nothing.
    """
    real = encode_windows(model, batch)
    predicted = unroll_samples(model, real.states[0], batch.action, real.context, generator).mean(1)
    error, trivial = squared_errors(predicted, real.z, batch.valid)
    windows = batch.valid.sum(-1)
    return error.sum(-1) / windows, trivial.sum(-1) / windows


def trusted_steps(model: WorldModel, batch: Batch, tolerance: float, generator: torch.Generator) -> Int[Tensor, ""]:
    """The largest h such that for every k <= h the model's error is below `tolerance` x the trivial one's.

    0 where the first step misses already; a NaN counts as a miss.
    """
    model_error, trivial_error = k_step_errors(model, batch, generator)
    return (model_error < tolerance * trivial_error).long().cumprod(0).sum()
