"""Rollouts of the world model from encoded real observations: under the recorded actions, or any other.

Letters: T steps, B windows, D latent, A action.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from flowmbpo.data.batch import Batch
from flowmbpo.models.task_context import TaskContext
from flowmbpo.models.world_model import WorldModel

Controls = Callable[[int, Float[Tensor, "B D"]], Float[Tensor, "B A"]]
"""Step and latents to the actions taken there."""


def rollout(
    model: WorldModel,
    start: Float[Tensor, "B D"],
    controls: Controls,
    context: TaskContext,
    steps: int,
    generator: torch.Generator | None = None,
) -> Iterator[tuple[Float[Tensor, "B D"], Float[Tensor, "B A"], Float[Tensor, "B D"]]]:
    """Latent, action and next latent of every step from the states `start`; without a generator deterministic."""
    state, z = start, model.latent(start)
    for step in range(steps):
        action = controls(step, z)
        state = model.next(state, action, context, generator)
        z_next = model.latent(state)
        yield z, action, z_next
        z = z_next


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
    """Latents of the open loop from the states `start` under the given actions (see `rollout`)."""
    walk = rollout(model, start, lambda step, z: action[step], context, len(action), generator)
    return torch.stack([model.latent(start), *(z_next for _, _, z_next in walk)])


def squared_errors(
    predicted: Float[Tensor, "T+1 B D"], real: Float[Tensor, "T+1 B D"], valid: Bool[Tensor, "T B"]
) -> tuple[Float[Tensor, "T B"], Float[Tensor, "T B"]]:
    """Squared errors of z after each step (mean over the latent), of the model and of 'nothing changes'.

    0 in both where the window has ended.
    """
    error, trivial = ((guess - real[1:]).square().mean(-1) for guess in (predicted[1:], real[:1]))
    return torch.where(valid, error, 0.0), torch.where(valid, trivial, 0.0)


@torch.no_grad()  # a probe of the model, not a loss
def draws_noise(model: WorldModel, start: Float[Tensor, "B D"], action: Float[Tensor, "B A"], ctx: TaskContext) -> bool:
    """Whether a step of the dynamics depends on its generator: two draws from the same states differ."""
    first, second = (model.next(start, action, ctx, torch.Generator(start.device).manual_seed(seed)) for seed in (0, 1))
    return not torch.equal(first, second)
