"""Real states to start from: saved environments, spread over the length of an episode.

Letters: G moments, N copies, H horizon, O observation.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from flowmbpo.diagnostics.episodes import Behaviour
from flowmbpo.envs.contract import VectorEnv


@dataclass(frozen=True)
class Starts:
    """The environment at G moments of N independent episodes, each at least `horizon` steps before any time limit.

    Copies are independent of each other; moments of one copy are not: they mostly share its episode.
    """

    states: tuple[dict[str, Any], ...]
    obs: Float[Tensor, "G N O"]
    task: Int[Tensor, " N"]
    horizon: int

    @property
    def moments(self) -> int:
        """G."""
        return len(self.states)

    @property
    def copies(self) -> int:
        """N."""
        return len(self.task)


@torch.no_grad()  # states are looked up, nothing is learnt here
def collect_starts(
    behaviour: Behaviour, env: VectorEnv, *, moments: int, horizon: int, seed: int, generator: torch.Generator
) -> Starts:
    """Run `behaviour` closed loop from `env.reset(seed)` and save the environment at random moments.

    One moment falls into each of `moments` equal parts of [0, L - horizon], L the shortest time
    limit; a copy whose episode ended earlier is in its next one. `horizon` is cut to L.
    """
    limit = min(env.spec.tasks[task].episode_length for task in env.task_ids.tolist())
    horizon = min(horizon, limit)
    room = limit - horizon + 1
    parts = min(moments, room)
    draws = torch.rand(parts, generator=generator, device=generator.device, dtype=torch.float64).tolist()
    chosen = [int((part + draw) * room / parts) for part, draw in enumerate(draws)]
    obs = env.reset(seed)
    states, seen = [], []
    device = generator.device
    for time in range(chosen[-1] + 1):
        if time in chosen:
            states.append(env.state_dict())
            seen.append(obs.clone())
        if time < chosen[-1]:
            obs = env.step(behaviour(obs.to(device), env.task_ids.to(device)).to(obs.device)).obs
    return Starts(tuple(states), torch.stack(seen).to(device), env.task_ids.to(device), horizon)
