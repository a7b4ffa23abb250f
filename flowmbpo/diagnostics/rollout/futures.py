"""Samples of the model's futures: states and reward sums after k steps, and whether the task has ended.

Letters: B starts, M samples, T steps, D latent, A action.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from flowmbpo.diagnostics.rollout.open_loop import predict_rewards
from flowmbpo.models.agent import Agent
from flowmbpo.models.task_context import TaskContext

FUTURE_STEPS = (1, 4, 8, 16)


@dataclass(frozen=True)
class Futures:
    """By number of steps k: latents, sums of the first k predicted rewards in real units, and endings up to then.

    Behind a predicted ending there are no rewards; without a termination head nothing ever ends.
    """

    z: dict[int, Float[Tensor, "M B D"]] = field(default_factory=dict)
    reward_sum: dict[int, Float[Tensor, "M B"]] = field(default_factory=dict)
    ended: dict[int, Bool[Tensor, "M B"]] = field(default_factory=dict)

    @property
    def steps(self) -> tuple[int, ...]:
        """The k that the horizon reaches."""
        return tuple(self.z)


@torch.no_grad()  # forecasts are judged, not trained
def sample_futures(
    agent: Agent,
    start: Float[Tensor, "B D"],
    action: Float[Tensor, "T B A"],
    context: TaskContext,
    members: int,
    generator: torch.Generator,
) -> Futures:
    """M futures of each start under the given actions, at the steps of FUTURE_STEPS that lie within T."""
    model, shape = agent.world_model, (members, len(start))
    every = context.repeat(members)
    state = start.repeat(members, 1)
    total = torch.zeros(len(state), dtype=torch.float64, device=state.device)
    alive = torch.ones_like(total, dtype=torch.bool)
    futures = Futures()
    for step, taken in enumerate(action, start=1):
        actions = taken.repeat(members, 1)
        total += alive * predict_rewards(agent, model.latent(state), actions, every)
        state = model.next(state, actions, every, generator)
        z = model.latent(state)
        if model.termination_head is not None:
            chance = torch.rand(len(state), generator=generator, device=state.device)
            alive &= chance < model.continuation(z, every)
        if step in FUTURE_STEPS:
            futures.z[step] = z.view(*shape, -1)
            futures.reward_sum[step] = total.view(shape).clone()
            futures.ended[step] = ~alive.view(shape)
    return futures
