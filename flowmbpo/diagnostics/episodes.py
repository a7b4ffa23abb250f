"""Real episodes, run closed loop for a diagnosis and kept whole.

Letters: T longest episode, N episodes, O observation, A action.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from flowmbpo.data.batch import Batch
from flowmbpo.envs.contract import VectorEnv
from flowmbpo.errors import DataError

Behaviour = Callable[[Float[Tensor, "N O"], Int[Tensor, " N"]], Float[Tensor, "N A"]]
"""Observations and task ids to the actions taken."""


@dataclass(frozen=True)
class Episodes:
    """N episodes, time-major and padded to the longest; `action[t]` leads from obs[t] to obs[t + 1].

    `length` counts an episode's transitions; behind them lie zeros, and the last observation
    repeated. `terminated` tells the episodes that the task ended itself from those of the time
    limit. An episode that the simulator broke is cut before the broken step and marked `broken`.
    """

    obs: Float[Tensor, "T+1 N O"]
    action: Float[Tensor, "T N A"]
    reward: Float[Tensor, "T N"]
    length: Int[Tensor, " N"]
    terminated: Bool[Tensor, " N"]
    broken: Bool[Tensor, " N"]
    task: Int[Tensor, " N"]

    @property
    def returns(self) -> Float[Tensor, " N"]:
        """Undiscounted sums of real rewards."""
        return self.reward.double().sum(0)

    @property
    def valid(self) -> Bool[Tensor, "T N"]:
        """Which transitions exist."""
        return torch.arange(len(self.action), device=self.length.device).unsqueeze(1) < self.length

    def sample(self, batch_size: int, horizon: int, generator: torch.Generator) -> Batch:
        """Windows of `horizon` transitions, starts uniform over all transitions (with replacement).

        Padded as `Batch` says where a window outlasts its episode. Raises DataError where no episode
        has a transition.
        """
        start, lane = self.draw(batch_size, generator)
        return self.cut(start, lane, horizon)

    def draw(self, count: int, generator: torch.Generator) -> tuple[Int[Tensor, " B"], Int[Tensor, " B"]]:
        """Steps, and episodes that they belong to: as `sample` draws its starts."""
        time, lane = self.valid.nonzero(as_tuple=True)
        if not len(time):
            raise DataError("no real transition was recorded: every episode broke at its first step")
        chosen = torch.randint(len(time), (count,), generator=generator, device=generator.device).to(time.device)
        return time[chosen], lane[chosen]

    def cut(self, start: Int[Tensor, " B"], lane: Int[Tensor, " B"], horizon: int) -> Batch:
        """Windows of `horizon` transitions from these (existing) steps of these episodes, padded as `Batch` says."""
        steps = torch.arange(horizon + 1, device=start.device).unsqueeze(1)
        valid = start + steps[:-1] < self.length[lane]
        obs = self.obs[torch.minimum(start + steps, self.length[lane]), lane]
        at = (start + steps[:-1]).clamp(max=len(self.action) - 1)
        last = start + steps[:-1] == self.length[lane] - 1
        return Batch(
            obs=obs,
            action=self.action[at, lane] * valid.unsqueeze(-1),
            reward=self.reward[at, lane] * valid,
            terminated=self.terminated[lane] & last,
            valid=valid,
            task=self.task[lane],
        )


@torch.no_grad()  # experience is recorded, nothing is learnt here
def run_episodes(behaviour: Behaviour, env: VectorEnv, seed: int, device: torch.device) -> Episodes:
    """One episode in each of `env`'s copies, from `env.reset(seed)`; the result lies on `device`."""
    obs = env.reset(seed)
    count = env.num_envs
    running = torch.ones(count, dtype=torch.bool)
    length = torch.zeros(count, dtype=torch.long)
    terminated, broken = torch.zeros_like(running), torch.zeros_like(running)
    seen, taken, earned = [obs.clone()], [], []
    while bool(running.any()):
        action = behaviour(obs.to(device), env.task_ids.to(device)).to(obs.device)
        step = env.step(action)
        faulty = torch.zeros_like(running)
        faulty[[fault.index for fault in step.faults if not fault.at_start]] = True
        counted = running & ~faulty
        length += counted
        seen.append(torch.where(counted.unsqueeze(-1), step.final_obs, seen[-1]))
        taken.append(action * counted.unsqueeze(-1))
        earned.append(step.reward * counted)
        terminated |= counted & step.terminated
        broken |= running & faulty
        running &= ~(step.done | faulty)
        obs = step.obs
    return Episodes(
        obs=torch.stack(seen).to(device),
        action=torch.stack(taken).to(device),
        reward=torch.stack(earned).to(device),
        length=length.to(device),
        terminated=terminated.to(device),
        broken=broken.to(device),
        task=env.task_ids.to(device),
    )
