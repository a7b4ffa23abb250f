"""The world model's maps from a latent z_0 and a first action to the latents z_1..z_H that follow.

Letters: H steps, B rows, D latent, A action.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from flowmbpo.diagnostics.jacobians.norms import Projection
from flowmbpo.diagnostics.subject import Subject
from flowmbpo.models.task_context import TaskContext
from flowmbpo.training.updates import frozen

Loop = Literal["open", "closed"]
Noise = Literal["none", "fixed"]


@dataclass(frozen=True)
class Trajectory:
    """Latents `z[h - 1]` after h steps as functions of `point` = [z_0, change of a_0]; `actions` as taken."""

    point: Float[Tensor, "B D+A"]
    z: list[Float[Tensor, "B D"]]
    actions: list[Float[Tensor, "B A"]]


def unroll(
    subject: Subject,
    start: Float[Tensor, "B D"],
    context: TaskContext,
    horizon: int,
    noise: Noise,
    actions: list[Tensor] | None = None,
) -> Trajectory:
    """`horizon` steps from the states `start`, differentiable in z_0 and a_0.

    Open loop under the given `actions`; closed loop under the policy without them, its actions sampled as in
    imagination. Samples of the policy, and with `noise` "fixed" those of the model, are the same in every call:
    constants of the map. The first state is the geometry's own state of z_0 (in logit geometry that of
    max(z_0, 1e-6)), so that derivatives are on the latent in every geometry.
    """
    agent = subject.agent
    model = agent.world_model
    policy = subject.generator("jacobians/policy")
    drawn = subject.generator("jacobians/model") if noise == "fixed" else None
    latent = model.latent(start).detach()
    shape = (len(start), agent.spec.action_dim)
    point = torch.cat([latent, latent.new_zeros(shape)], dim=-1).requires_grad_()
    z, shift = _split(point, latent.shape[-1])
    state = model.geometry.from_latent(z)
    latents: list[Tensor] = []
    taken: list[Tensor] = []
    with frozen(agent):  # only z_0 and a_0 are asked about
        for step in range(horizon):
            action = agent.actor(z, context, policy) if actions is None else actions[step]
            taken.append(action.detach())
            state = model.next(state, action + shift if step == 0 else action, context, drawn)
            z = model.latent(state)
            latents.append(z)
    return Trajectory(point, latents, taken)


@torch.no_grad()  # asks whether there is noise, not what follows from it
def draws_noise(subject: Subject, start: Float[Tensor, "B D"], context: TaskContext) -> bool:
    """Whether a step of the model is random."""
    generator = subject.generator("jacobians/model")
    before = generator.get_state()
    action = start.new_zeros(len(start), subject.agent.spec.action_dim)
    subject.agent.world_model.next(start, action, context, generator)
    return not torch.equal(before, generator.get_state())


def latent_projection(subject: Subject) -> Projection:
    """Of [z, a]: the latent's allowed directions (the simplex's tangent), and no action."""
    width, geometry = subject.config.model.latent_dim, subject.agent.world_model.geometry

    def project(v: Tensor) -> Tensor:
        z, a = _split(v, width)
        return torch.cat([geometry.project(z), torch.zeros_like(a)], dim=-1)

    return project


def action_projection(subject: Subject, context: TaskContext) -> Projection:
    """Of [z, a]: the action dimensions that each row's task has, and no latent."""
    width = subject.config.model.latent_dim

    def project(v: Tensor) -> Tensor:
        z, a = _split(v, width)
        return torch.cat([torch.zeros_like(z), a * context.action_mask], dim=-1)

    return project


def latent_rank(subject: Subject) -> int:
    """Dimension of the latent's allowed directions: D, less one per group on a simplex.

    The trace of P, of which `noise_gain` is the inverse root per coordinate.
    """
    return round(subject.config.model.latent_dim / subject.agent.world_model.geometry.noise_gain**2)


def action_ranks(context: TaskContext) -> Float[Tensor, " B"]:
    """Number of action dimensions that each row's task has."""
    return context.action_mask.sum(-1)


def _split(x: Tensor, width: int) -> tuple[Tensor, Tensor]:
    return x[..., :width], x[..., width:]
