"""Several copies of a task, stepped one after another by one worker. Imports no torch."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np

from flowmbpo.envs.seeding import episode_seed
from flowmbpo.envs.spec import TaskInfo
from flowmbpo.envs.workers.buffers import SharedBuffers
from flowmbpo.envs.workers.server import CPU, LOAD, RESET, STEP, Handlers
from flowmbpo.envs.workers.simulator import Simulator, SimulatorFactory
from flowmbpo.errors import EnvironmentFailure


@dataclass(frozen=True)
class Saved:
    """Where one copy stands: its episode's number and the actions since that episode began."""

    index: int
    episode: int
    actions: np.ndarray  # float32 [t, A]


@dataclass
class _Copy:
    """One simulator with its place in the episode."""

    index: int
    simulator: Simulator
    episode: int = 0
    elapsed: int = 0


def checked_simulator(make: SimulatorFactory, task: TaskInfo) -> Simulator:
    """A simulator whose widths are the task table's; raises EnvironmentFailure where they are not."""
    simulator = make()
    found, expected = (simulator.obs_dim, simulator.action_dim), (task.obs_dim, task.action_dim)
    if found != expected:
        raise EnvironmentFailure(
            f"{task.name}: the simulator has observation and action widths {found}, the task table says {expected}; "
            "install the simulator version that the project pins"
        )
    return simulator


class EnvironmentGroup:
    """The copies `indices` of a task: stepped, reset at their episodes' ends, replayed."""

    def __init__(
        self, make: SimulatorFactory, task: TaskInfo, indices: range, buffers: SharedBuffers, worker: int
    ) -> None:
        self._task = task
        self._arrays = buffers.arrays()
        self._busy = self._arrays.busy[worker : worker + 1]
        self._seed = 0
        self._copies: list[_Copy] = []
        for index in indices:
            self._busy[0] = index
            self._copies.append(_Copy(index, checked_simulator(make, task)))
        self._busy[0] = -1

    def handlers(self) -> Handlers:
        """What a worker that owns this group answers to."""
        return {
            STEP: lambda _: self.step(),
            RESET: self.reset,
            LOAD: lambda payload: self.load(*payload),
            CPU: lambda _: time.process_time(),
        }

    def reset(self, seed: int) -> None:
        """Start episode 0 of every copy."""
        self._seed = seed
        for copy in self._copies:
            self._start(copy, 0)
        self._busy[0] = -1

    def step(self) -> None:
        """One agent step of every copy, and the next episode's start where one ended."""
        arrays = self._arrays
        for copy in self._copies:
            index = copy.index
            self._busy[0] = index
            final_obs = arrays.final_obs[index]
            outcome = copy.simulator.step(arrays.action[index], final_obs)
            copy.elapsed += 1
            self._require_finite(copy, final_obs, outcome.reward)
            truncated = not outcome.terminated and copy.elapsed >= self._task.episode_length
            arrays.reward[index] = outcome.reward
            arrays.success[index] = outcome.success
            arrays.terminated[index] = outcome.terminated
            arrays.truncated[index] = truncated
            if outcome.terminated or truncated:
                self._start(copy, copy.episode + 1)
            else:
                arrays.obs[index] = final_obs
        self._busy[0] = -1

    def load(self, seed: int, saved: list[Saved]) -> None:
        """Put every copy back to where it was: a seeded reset, then the same actions."""
        self._seed = seed
        for copy, place in zip(self._copies, saved, strict=True):
            self._start(copy, place.episode)
            row = self._arrays.obs[copy.index]
            for action in place.actions:
                copy.simulator.step(action, row)
                copy.elapsed += 1
            self._require_finite(copy, row, 0.0)
        self._busy[0] = -1

    def _start(self, copy: _Copy, episode: int) -> None:
        self._busy[0] = copy.index
        copy.episode, copy.elapsed = episode, 0
        row = self._arrays.obs[copy.index]
        copy.simulator.reset(episode_seed(self._seed, copy.index, episode), row)
        self._require_finite(copy, row, 0.0)

    def _require_finite(self, copy: _Copy, obs: np.ndarray, reward: float) -> None:
        if np.isfinite(reward) and np.isfinite(obs).all():
            return
        bad = np.flatnonzero(~np.isfinite(obs)).tolist()
        raise EnvironmentFailure(
            f"the simulator gave a non-finite result after {copy.elapsed} steps of episode {copy.episode}: "
            f"reward {reward}, observation entries {bad}; {copy.simulator.describe()}"
        )


def group_handlers(
    make: SimulatorFactory, task: TaskInfo, indices: range, buffers: SharedBuffers, worker: int
) -> Handlers:
    """Build a group in the process that will own it."""
    return EnvironmentGroup(make, task, indices, buffers, worker).handlers()
