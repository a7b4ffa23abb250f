"""A vector environment over one batch simulator, in this process."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from flowmbpo.envs.assignment import check_same_tasks
from flowmbpo.envs.batch.errors import SimulatorErrors
from flowmbpo.envs.batch.simulator import BatchOutcome, BatchSimulator
from flowmbpo.envs.contract import (
    MAX_FAILED_STARTS,
    EnvStep,
    Fault,
    VectorEnv,
    bounded_actions,
    broken_numbers,
    episode_seed,
    sound,
)
from flowmbpo.envs.differentiable import DifferentiableCopies
from flowmbpo.errors import EnvironmentFailure
from flowmbpo.spec import EnvSpec

log = logging.getLogger("flowmbpo")


class BatchVectorEnv(VectorEnv):
    """The contract around a `BatchSimulator`: seeds, episodes, time limits, faults, saved states.

    Whatever the simulator raises comes out as EnvironmentFailure, and one that fails in a step or a
    reset closes the environment.
    """

    def __init__(self, simulator: BatchSimulator, spec: EnvSpec | None = None) -> None:
        self.simulator = simulator
        self.spec = EnvSpec((simulator.task,)) if spec is None else spec  # a set of one task has its own name
        self.num_envs = simulator.num_envs
        self.task_ids = torch.zeros(self.num_envs, dtype=torch.int64)
        self._task = simulator.task
        self._seed = -1
        # Counted in numpy: its calls cost a third of torch's on arrays of this size.
        self._rows = np.arange(self.num_envs)
        self._episode = np.zeros(self.num_envs, dtype=np.int64)
        self._elapsed = np.zeros(self.num_envs, dtype=np.int64)
        # Of the running episodes, for the faults to tell.
        shape = (self.num_envs, self._task.episode_length, self._task.action_dim)
        self._actions = np.zeros(shape, dtype=np.float32)
        self._no_success = torch.full((self.num_envs,), torch.nan)
        self._cpu_seconds = 0.0
        self._closed = False

    def reset(self, seed: int) -> Float[Tensor, "N O"]:
        self._require_open()
        self._seed = seed
        self._episode[:] = 0
        with self._failures_close():
            obs, faults = self._begin(self._rows.tolist())
        for fault in faults:
            log.warning("%s; the next episode begins instead", fault)
        return obs

    @torch.no_grad()
    def step(self, action: Float[Tensor, "N A"]) -> EnvStep:
        self._require_reset()
        bounded = bounded_actions(action, self.num_envs, self.spec.action_dim)
        self._actions[self._rows, self._elapsed] = bounded
        with self._failures_close():
            outcome = self.simulator.step(torch.from_numpy(bounded))
            self._elapsed += 1
            return self._conclude(outcome)

    def state_dict(self) -> dict[str, Any]:
        """The simulator's state; the actions are there for a later fault to be replayed by."""
        self._require_reset()
        lengths = self._elapsed.tolist()
        with SimulatorErrors(self._task.name):
            simulator = self.simulator.state_dict()
        return {
            "task": self.spec.label,
            "task_ids": self.task_ids.clone(),
            "seed": self._seed,
            "episode": torch.from_numpy(self._episode.copy()),
            "elapsed": torch.from_numpy(self._elapsed.copy()),
            "actions": [torch.from_numpy(self._actions[i, :n].copy()) for i, n in enumerate(lengths)],
            "simulator": simulator,
        }

    def load_state_dict(self, state: dict[str, Any]) -> Float[Tensor, "N O"]:
        """Raises ValueError where the state is of another task or another number of copies."""
        self._require_open()
        check_same_tasks(self, state)
        self._seed = int(state["seed"])
        self._episode[:] = state["episode"].numpy()
        self._elapsed[:] = state["elapsed"].numpy()
        self._actions[:] = np.nan  # states of 0.1 know no actions
        for row, actions in zip(self._actions, state.get("actions", ()), strict=False):
            row[: len(actions)] = actions.numpy()
        with self._failures_close():
            self.simulator.load_state_dict(state["simulator"] if "simulator" in state else self._toy_state(state))
            return self.simulator.observe()

    def render(self, index: int = 0) -> np.ndarray:
        self._require_reset()
        with SimulatorErrors(self._task.name):
            return self.simulator.render(index)

    def differentiable(self) -> DifferentiableCopies | None:
        self._require_reset()
        return self.simulator.differentiable()

    def cpu_seconds(self) -> float:
        if not self._closed:
            self._cpu_seconds = self.simulator.cpu_seconds()
        return self._cpu_seconds

    def close(self) -> None:
        if not self._closed:
            self.cpu_seconds()
            self._closed = True
            self.simulator.close()

    def _toy_state(self, state: dict[str, Any]) -> dict[str, Any]:
        """The simulator's part of a state of version 0.1, whose toys stood alone and had no noise."""
        noise = torch.zeros(self.num_envs, self._task.episode_length, 0)
        return {"state": state["state"], "elapsed": state["elapsed"], "noise": noise}

    def _conclude(self, outcome: BatchOutcome) -> EnvStep:
        """Judge a step that was taken, and start the next episodes where one ended or broke."""
        terminated = outcome.terminated.numpy()
        truncated = (self._elapsed >= self._task.episode_length) & ~terminated
        success = self._no_success.clone() if outcome.success is None else outcome.success
        reward, final_obs = outcome.reward, outcome.obs
        faults = self._find_faults(outcome)
        broken = np.zeros(self.num_envs, dtype=bool)
        broken[[fault.index for fault in faults]] = True
        if faults:
            terminated, truncated = terminated & ~broken, truncated & ~broken
        ended = terminated | truncated | broken
        if ended.any():
            self._episode[ended] += 1
            obs, unstarted = self._begin(np.flatnonzero(ended).tolist())
        else:
            obs, unstarted = final_obs.clone(), []
        if faults:
            mask = torch.from_numpy(broken)
            reward, success = reward.masked_fill(mask, 0.0), success.masked_fill(mask, torch.nan)
            final_obs = torch.where(mask.unsqueeze(-1), obs, final_obs)
        return EnvStep(
            obs=obs,
            reward=reward,
            terminated=torch.from_numpy(terminated),
            truncated=torch.from_numpy(truncated),
            final_obs=final_obs,
            success=success,
            faults=(*faults, *unstarted),
        )

    def _begin(self, indices: list[int]) -> tuple[Float[Tensor, "N O"], list[Fault]]:
        """Start the current episodes of `indices`, or later ones where those cannot start.

        Returns the observations of all copies, and the episodes that could not start.
        """
        faults: list[Fault] = []
        for _ in range(MAX_FAILED_STARTS):
            self._elapsed[indices] = 0
            reasons = self._start(indices)
            obs = self.simulator.observe()
            if not reasons and sound(obs.numpy(), self.simulator.absurd):
                return obs, faults
            rows = obs.numpy()
            for index in indices:
                reason = reasons.get(index) or broken_numbers(rows[index], 0.0, self.simulator.absurd)
                if reason is not None:
                    reasons[index] = reason
                    faults.append(self._fault(index, reason))
            if not reasons:
                return obs, faults
            indices = sorted(reasons)
            self._episode[indices] += 1
        raise EnvironmentFailure(f"{MAX_FAILED_STARTS} episodes in a row could not start; the last: {faults[-1]}")

    def _start(self, indices: list[int]) -> dict[int, str]:
        """Start the current episodes of `indices`; those that raise EnvironmentFailure, and why."""
        seeds = [episode_seed(self._seed, index, int(self._episode[index])) for index in indices]
        try:
            self.simulator.start(indices, seeds)
        except EnvironmentFailure as error:
            if len(indices) == 1:
                return {indices[0]: str(error)}
        else:
            return {}
        reasons: dict[int, str] = {}
        for index in indices:  # whose it was is not known
            reasons |= self._start([index])
        return reasons

    def _find_faults(self, outcome: BatchOutcome) -> list[Fault]:
        obs, reward, absurd = outcome.obs.numpy(), outcome.reward.numpy(), self.simulator.absurd
        if sound(obs, absurd) and sound(reward, absurd):
            return []
        reasons = (broken_numbers(obs[index], float(reward[index]), absurd) for index in range(self.num_envs))
        return [self._fault(index, reason) for index, reason in enumerate(reasons) if reason is not None]

    def _fault(self, index: int, reason: str) -> Fault:
        step = int(self._elapsed[index])
        return Fault(
            index=index,
            task=self._task.name,
            seed=self._seed,
            episode=int(self._episode[index]),
            step=step,
            reason=reason,
            state=self.simulator.describe(index),
            actions=self._actions[index, :step].copy(),
        )

    def _failures_close(self) -> SimulatorErrors:
        return SimulatorErrors(self._task.name, self.close)

    def _require_open(self) -> None:
        if self._closed:
            raise EnvironmentFailure(f"{self.spec.label}: the environment is closed; make it again")

    def _require_reset(self) -> None:
        self._require_open()
        if self._seed < 0:
            raise ValueError("the environment has not been started: call reset(seed) first")
