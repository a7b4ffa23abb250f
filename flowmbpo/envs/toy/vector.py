"""Toy systems as a vector environment: N copies in one batch, in this process."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from flowmbpo.envs.actions import bounded_actions
from flowmbpo.envs.base import EnvStep, VectorEnv
from flowmbpo.envs.seeding import episode_seed
from flowmbpo.envs.spec import EnvSpec
from flowmbpo.envs.toy.system import ToySystem


class ToyVectorEnv(VectorEnv):
    """N copies of a toy system. No toy system terminates; the time limit truncates."""

    def __init__(self, system: ToySystem, num_envs: int) -> None:
        self.system = system
        self.spec = EnvSpec((system.task,))
        self.num_envs = num_envs
        self.task_ids = torch.zeros(num_envs, dtype=torch.int64)
        self._seed = -1
        self._state = torch.empty(0)
        self._episode = torch.zeros(num_envs, dtype=torch.int64)
        self._elapsed = torch.zeros(num_envs, dtype=torch.int64)
        self._never = torch.zeros(num_envs, dtype=torch.bool)

    def reset(self, seed: int) -> Float[Tensor, "N O"]:
        self._seed = seed
        self._episode = torch.zeros(self.num_envs, dtype=torch.int64)
        self._elapsed = torch.zeros(self.num_envs, dtype=torch.int64)
        self._state = self._starts(range(self.num_envs))
        return self.system.observe(self._state)

    @torch.no_grad()
    def step(self, action: Float[Tensor, "N A"]) -> EnvStep:
        self._require_reset()
        action = bounded_actions(action, self.num_envs, self.spec.action_dim)
        self._state, reward = self.system.transition(self._state, action)
        self._elapsed += 1
        truncated = self._elapsed >= self.system.task.episode_length
        final_obs = obs = self.system.observe(self._state)
        if truncated.any():
            self._restart(truncated)
            obs = self.system.observe(self._state)
        return EnvStep(
            obs=obs,
            reward=reward,
            terminated=self._never.clone(),
            truncated=truncated,
            final_obs=final_obs,
            success=torch.full((self.num_envs,), torch.nan),
        )

    def state_dict(self) -> dict[str, Any]:
        self._require_reset()
        return {
            "task": self.system.task.name,
            "seed": self._seed,
            "state": self._state.clone(),
            "episode": self._episode.clone(),
            "elapsed": self._elapsed.clone(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> Float[Tensor, "N O"]:
        """Raises ValueError where the state is of another task or another number of copies."""
        saved = (state["task"], len(state["episode"]))
        if saved != (self.system.task.name, self.num_envs):
            raise ValueError(
                f"the saved environment is {saved[1]} x '{saved[0]}'; "
                f"this one is {self.num_envs} x '{self.system.task.name}'"
            )
        self._seed = state["seed"]
        self._state = state["state"].clone()
        self._episode = state["episode"].clone()
        self._elapsed = state["elapsed"].clone()
        return self.system.observe(self._state)

    def render(self, index: int = 0) -> np.ndarray:
        self._require_reset()
        return self.system.draw(self._state[index].tolist())

    def _starts(self, indices: range | list[int]) -> Float[Tensor, "n S"]:
        """First states of the current episodes of `indices`."""
        episodes = self._episode.tolist()
        seeds = (episode_seed(self._seed, index, episodes[index]) for index in indices)
        return torch.tensor([self.system.start(np.random.default_rng(seed)) for seed in seeds], dtype=torch.float32)

    def _restart(self, ended: Tensor) -> None:
        self._episode += ended
        self._elapsed.masked_fill_(ended, 0)
        state = self._state.clone()
        state[ended] = self._starts(ended.nonzero()[:, 0].tolist())
        self._state = state

    def _require_reset(self) -> None:
        if self._seed < 0:
            raise ValueError("the environment has not been started: call reset(seed) first")
