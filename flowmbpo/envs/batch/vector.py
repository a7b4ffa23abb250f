"""A vector environment over one batch simulator, in this process."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from flowmbpo.envs.actions import bounded_actions
from flowmbpo.envs.base import EnvStep, VectorEnv
from flowmbpo.envs.batch.simulator import BatchOutcome, BatchSimulator
from flowmbpo.envs.faults import ABSURD, Fault, broken_numbers
from flowmbpo.envs.seeding import episode_seed
from flowmbpo.envs.spec import EnvSpec
from flowmbpo.errors import EnvironmentFailure


class BatchVectorEnv(VectorEnv):
    """The contract around a `BatchSimulator`: seeds, episodes, time limits, faults, saved states."""

    def __init__(self, simulator: BatchSimulator) -> None:
        self.simulator = simulator
        self.spec = EnvSpec((simulator.task,))
        self.num_envs = simulator.num_envs
        self.task_ids = torch.zeros(self.num_envs, dtype=torch.int64)
        self._task = simulator.task
        self._seed = -1
        self._episode = torch.zeros(self.num_envs, dtype=torch.int64)
        self._elapsed = torch.zeros(self.num_envs, dtype=torch.int64)

    def reset(self, seed: int) -> Float[Tensor, "N O"]:
        self._seed = seed
        self._episode = torch.zeros_like(self._episode)
        self._elapsed = torch.zeros_like(self._elapsed)
        return self._begin(list(range(self.num_envs)))

    @torch.no_grad()
    def step(self, action: Float[Tensor, "N A"]) -> EnvStep:
        self._require_reset()
        action = bounded_actions(action, self.num_envs, self.spec.action_dim)
        outcome = self.simulator.step(action)
        self._elapsed += 1
        truncated = (self._elapsed >= self._task.episode_length) & ~outcome.terminated
        success = outcome.success
        if success is None:
            success = torch.full((self.num_envs,), torch.nan)
        faults = self._find_faults(outcome, action)
        ended = outcome.terminated | truncated
        if faults:
            return self._step_with_faults(outcome, truncated, success, faults)
        obs = outcome.obs
        if ended.any():
            self._episode += ended
            self._elapsed.masked_fill_(ended, 0)
            obs = self._begin(ended.nonzero()[:, 0].tolist())
        return EnvStep(obs, outcome.reward, outcome.terminated, truncated, outcome.obs, success)

    def state_dict(self) -> dict[str, Any]:
        self._require_reset()
        return {
            "task": self._task.name,
            "seed": self._seed,
            "episode": self._episode.clone(),
            "elapsed": self._elapsed.clone(),
            "simulator": self.simulator.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> Float[Tensor, "N O"]:
        """Raises ValueError where the state is of another task or another number of copies."""
        saved = (state["task"], len(state["episode"]))
        if saved != (self._task.name, self.num_envs):
            raise ValueError(
                f"the saved environment is {saved[1]} x '{saved[0]}'; this one is {self.num_envs} x '{self._task.name}'"
            )
        self._seed = state["seed"]
        self._episode = state["episode"].clone()
        self._elapsed = state["elapsed"].clone()
        self.simulator.load_state_dict(state["simulator"])
        return self.simulator.observe()

    def render(self, index: int = 0) -> np.ndarray:
        self._require_reset()
        return self.simulator.render(index)

    def close(self) -> None:
        self.simulator.close()

    def _begin(self, indices: list[int]) -> Float[Tensor, "N O"]:
        """Start the current episodes of `indices`; the observations of all copies."""
        episodes = self._episode.tolist()
        self.simulator.start(indices, [episode_seed(self._seed, index, episodes[index]) for index in indices])
        obs = self.simulator.observe()
        if not bool((obs.abs() < ABSURD).all()):
            broken = (~(obs.abs() < ABSURD)).any(dim=-1).nonzero()[:, 0].tolist()
            raise EnvironmentFailure(
                f"{self._task.name}: the first observations of environments {broken} are not finite or absurd; "
                f"{self.simulator.describe(broken[0])}"
            )
        return obs

    def _find_faults(self, outcome: BatchOutcome, action: Tensor) -> tuple[Fault, ...]:
        # Two reductions on the path that every step takes; which copy it was is found only when one is bad.
        largest = torch.maximum(outcome.obs.abs().amax(), outcome.reward.abs().amax())
        if bool(largest < ABSURD):
            return ()
        faults = []
        for index in range(self.num_envs):
            reason = broken_numbers(outcome.obs[index].numpy(), float(outcome.reward[index]))
            if reason is not None:
                faults.append(
                    Fault(
                        index=index,
                        task=self._task.name,
                        seed=self._seed,
                        episode=int(self._episode[index]),
                        step=int(self._elapsed[index]),
                        reason=reason,
                        state=self.simulator.describe(index),
                        actions=action[index : index + 1].numpy().copy(),
                    )
                )
        return tuple(faults)

    def _step_with_faults(
        self, outcome: BatchOutcome, truncated: Tensor, success: Tensor, faults: tuple[Fault, ...]
    ) -> EnvStep:
        broken = torch.zeros(self.num_envs, dtype=torch.bool)
        broken[[fault.index for fault in faults]] = True
        terminated, truncated = outcome.terminated & ~broken, truncated & ~broken
        restarted = terminated | truncated | broken
        self._episode += restarted
        self._elapsed.masked_fill_(restarted, 0)
        obs = self._begin(restarted.nonzero()[:, 0].tolist())
        return EnvStep(
            obs=obs,
            reward=outcome.reward.masked_fill(broken, 0.0),
            terminated=terminated,
            truncated=truncated,
            final_obs=torch.where(broken.unsqueeze(-1), obs, outcome.obs),
            success=success.masked_fill(broken, torch.nan),
            faults=faults,
        )

    def _require_reset(self) -> None:
        if self._seed < 0:
            raise ValueError("the environment has not been started: call reset(seed) first")
