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
from flowmbpo.envs.faults import ABSURD, Fault, broken_numbers, sound
from flowmbpo.envs.seeding import episode_seed
from flowmbpo.envs.spec import EnvSpec
from flowmbpo.errors import EnvironmentFailure


class BatchVectorEnv(VectorEnv):
    """The contract around a `BatchSimulator`: seeds, episodes, time limits, faults, saved states."""

    def __init__(self, simulator: BatchSimulator, spec: EnvSpec | None = None) -> None:
        self.simulator = simulator
        self.spec = EnvSpec((simulator.task,)) if spec is None else spec  # a set of one task has its own name
        self.num_envs = simulator.num_envs
        self.task_ids = torch.zeros(self.num_envs, dtype=torch.int64)
        self._task = simulator.task
        self._seed = -1
        # Counted in numpy: its calls cost a third of torch's on arrays of this size.
        self._episode = np.zeros(self.num_envs, dtype=np.int64)
        self._elapsed = np.zeros(self.num_envs, dtype=np.int64)
        self._no_success = torch.full((self.num_envs,), torch.nan)

    def reset(self, seed: int) -> Float[Tensor, "N O"]:
        self._seed = seed
        self._episode[:] = 0
        self._elapsed[:] = 0
        return self._begin(list(range(self.num_envs)))

    @torch.no_grad()
    def step(self, action: Float[Tensor, "N A"]) -> EnvStep:
        self._require_reset()
        bounded = torch.from_numpy(bounded_actions(action, self.num_envs, self.spec.action_dim))
        outcome = self.simulator.step(bounded)
        self._elapsed += 1
        terminated = outcome.terminated.numpy()
        truncated = (self._elapsed >= self._task.episode_length) & ~terminated
        success = self._no_success.clone() if outcome.success is None else outcome.success
        faults = self._find_faults(outcome, bounded)
        if faults:
            return self._step_with_faults(outcome, truncated, success, faults)
        obs = outcome.obs
        ended = terminated | truncated
        if ended.any():
            obs = self._begin_next(ended)
        return EnvStep(obs, outcome.reward, outcome.terminated, torch.from_numpy(truncated), outcome.obs, success)

    def state_dict(self) -> dict[str, Any]:
        self._require_reset()
        return {
            "task": self._task.name,
            "seed": self._seed,
            "episode": torch.from_numpy(self._episode.copy()),
            "elapsed": torch.from_numpy(self._elapsed.copy()),
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
        self._episode[:] = state["episode"].numpy()
        self._elapsed[:] = state["elapsed"].numpy()
        self.simulator.load_state_dict(state["simulator"])
        return self.simulator.observe()

    def render(self, index: int = 0) -> np.ndarray:
        self._require_reset()
        return self.simulator.render(index)

    def close(self) -> None:
        self.simulator.close()

    def _begin_next(self, ended: np.ndarray) -> Float[Tensor, "N O"]:
        """Start the next episodes of the copies that are marked; the observations of all copies."""
        self._episode[ended] += 1
        self._elapsed[ended] = 0
        return self._begin(np.flatnonzero(ended).tolist())

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
        obs, reward = outcome.obs.numpy(), outcome.reward.numpy()
        if sound(obs) and sound(reward):
            return ()
        faults = []
        for index in range(self.num_envs):
            reason = broken_numbers(obs[index], float(reward[index]))
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
        self, outcome: BatchOutcome, truncated: np.ndarray, success: Tensor, faults: tuple[Fault, ...]
    ) -> EnvStep:
        broken = np.zeros(self.num_envs, dtype=bool)
        broken[[fault.index for fault in faults]] = True
        terminated, truncated = outcome.terminated.numpy() & ~broken, truncated & ~broken
        obs = self._begin_next(terminated | truncated | broken)
        mask = torch.from_numpy(broken)
        return EnvStep(
            obs=obs,
            reward=outcome.reward.masked_fill(mask, 0.0),
            terminated=torch.from_numpy(terminated),
            truncated=torch.from_numpy(truncated),
            final_obs=torch.where(mask.unsqueeze(-1), obs, outcome.obs),
            success=success.masked_fill(mask, torch.nan),
            faults=faults,
        )

    def _require_reset(self) -> None:
        if self._seed < 0:
            raise ValueError("the environment has not been started: call reset(seed) first")
