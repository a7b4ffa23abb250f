"""Rollouts of the world model from encoded real observations: under the recorded actions, or any other.

Letters: T steps, B windows, M samples, D latent, A action.
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

SAMPLES = 16
"""M: rollouts of a stochastic model whose mean is its prediction."""

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
    """Latent, action and next latent of every step from the states `start`; without a generator no noise is drawn."""
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


def unroll_samples(
    model: WorldModel,
    start: Float[Tensor, "B D"],
    action: Float[Tensor, "T B A"],
    context: TaskContext,
    generator: torch.Generator,
) -> Float[Tensor, "T+1 M B D"]:
    """`unroll` M times; once, and without a draw, where the dynamics have no noise.

    What a model predicts is the mean over M: a flow's step of zero noise is one of its modes, and the mean is what a
    squared error is least for. The mean of M errs by 1 / M of the samples' variance more than the true one.
    """
    if not model.dynamics.stochastic:
        return unroll(model, start, action, context).unsqueeze(1)
    many = unroll(model, start.repeat(SAMPLES, 1), action.repeat(1, SAMPLES, 1), context.repeat(SAMPLES), generator)
    return many.view(len(many), SAMPLES, *start.shape)


def squared_errors(
    predicted: Float[Tensor, "T+1 B D"], real: Float[Tensor, "T+1 B D"], valid: Bool[Tensor, "T B"]
) -> tuple[Float[Tensor, "T B"], Float[Tensor, "T B"]]:
    """Squared errors of z after each step (mean over the latent), of the model and of 'nothing changes'.

    0 in both where the window has ended.
    """
    error, trivial = ((guess - real[1:]).square().mean(-1) for guess in (predicted[1:], real[:1]))
    return torch.where(valid, error, 0.0), torch.where(valid, trivial, 0.0)
