"""What a worker process steps, without torch: simulators of single environments, over memory shared with its parent."""

from __future__ import annotations

import ctypes
import multiprocessing
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from flowmbpo.envs.episodes import ABSURD, MAX_FAILED_STARTS, broken_numbers, episode_seed
from flowmbpo.envs.processes.worker import CPU, LOAD, RESET, STEP, Handlers
from flowmbpo.errors import EnvironmentFailure
from flowmbpo.spec import TaskInfo


@dataclass(frozen=True)
class StepOutcome:
    """What one agent step gave beside the observation. `success` is nan where the task defines none."""

    reward: float
    terminated: bool
    success: float


class Simulator(ABC):
    """One environment of a task. Observations are written into float32 rows [O] that the caller owns.

    An episode is determined by the seed that it is reset with and by its actions: saving and
    rendering replay it. EnvironmentFailure, and numbers that are not finite or at least `absurd` in
    size, break the episode: the next one begins. Any other error may be raised as it is, and ends the
    whole environment.
    """

    obs_dim: int
    action_dim: int
    absurd: float = ABSURD

    @abstractmethod
    def reset(self, seed: np.random.SeedSequence, obs: np.ndarray) -> None:
        """Start an episode."""

    @abstractmethod
    def step(self, action: np.ndarray, obs: np.ndarray) -> StepOutcome:
        """One agent step, all repeats, with an action in [-1, 1], float32 [A]."""

    @abstractmethod
    def describe(self) -> str:
        """The state that the last step started from, in one line; after `reset`, the one it gave."""

    @abstractmethod
    def render(self) -> np.ndarray:
        """The current frame, uint8 [height, width, 3]."""


SimulatorFactory = Callable[[], Simulator]
"""Makes one simulator; sent to worker processes, so it must pickle."""


@dataclass(frozen=True)
class StepArrays:
    """One step of N environments; row i belongs to environment i, and only its worker writes its results."""

    action: np.ndarray  # float32 [N, A]
    obs: np.ndarray  # float32 [N, O]
    final_obs: np.ndarray  # float32 [N, O]
    reward: np.ndarray  # float32 [N]
    success: np.ndarray  # float32 [N]
    terminated: np.ndarray  # bool [N]
    truncated: np.ndarray  # bool [N]
    busy: np.ndarray  # int32 [W]: the environment that each worker is at, -1 while it waits


class SharedBuffers:
    """Shared memory for `StepArrays`. Anonymous: it ends with the last process that maps it."""

    def __init__(self, num_envs: int, obs_dim: int, action_dim: int, workers: int) -> None:
        self._shapes: dict[str, tuple[str, tuple[int, ...]]] = {
            "action": ("float32", (num_envs, action_dim)),
            "obs": ("float32", (num_envs, obs_dim)),
            "final_obs": ("float32", (num_envs, obs_dim)),
            "reward": ("float32", (num_envs,)),
            "success": ("float32", (num_envs,)),
            "terminated": ("bool", (num_envs,)),
            "truncated": ("bool", (num_envs,)),
            "busy": ("int32", (max(workers, 1),)),
        }
        context = multiprocessing.get_context("spawn")
        self._memory: dict[str, Any] = {
            name: context.RawArray(ctypes.c_byte, np.dtype(dtype).itemsize * int(np.prod(shape)))
            for name, (dtype, shape) in self._shapes.items()
        }

    def arrays(self) -> StepArrays:
        """Numpy views of the memory, in whichever process this is called."""
        return StepArrays(
            **{
                name: np.frombuffer(self._memory[name], dtype=dtype).reshape(shape)
                for name, (dtype, shape) in self._shapes.items()
            }
        )


@dataclass(frozen=True)
class Saved:
    """Where one environment stands: its episode's number and the actions since that episode began."""

    index: int
    episode: int
    actions: np.ndarray  # float32 [t, A]


@dataclass(frozen=True)
class Member:
    """An environment that a group is to own: its place in the vector environment and what it runs."""

    index: int
    task: TaskInfo
    make: SimulatorFactory


@dataclass(frozen=True)
class Breakdown:
    """An environment whose simulator broke in a step, or could not start the episode `at_start`, and how."""

    index: int
    reason: str
    state: str
    at_start: bool = False


@dataclass
class _Env:
    """One simulator with its place in the episode and its views of the shared rows.

    A task that is narrower than the set sees only its own entries of a row; nothing it does can
    depend on the padding, and the padding of its observations stays 0.
    """

    index: int
    simulator: Simulator
    task: TaskInfo
    action: np.ndarray
    obs: np.ndarray
    final_obs: np.ndarray
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
    """Environments of one or several tasks: stepped, reset at their episodes' ends, replayed."""

    def __init__(self, members: Sequence[Member], buffers: SharedBuffers, worker: int) -> None:
        arrays = buffers.arrays()
        self._arrays = arrays
        self._busy = arrays.busy[worker : worker + 1]
        self._seed = 0
        self._envs: list[_Env] = []
        for member in members:
            index, task = member.index, member.task
            self._busy[0] = index
            self._envs.append(
                _Env(
                    index=index,
                    simulator=checked_simulator(member.make, task),
                    task=task,
                    action=arrays.action[index, : task.action_dim],
                    obs=arrays.obs[index, : task.obs_dim],
                    final_obs=arrays.final_obs[index, : task.obs_dim],
                )
            )
        self._busy[0] = -1

    def reset(self, seed: int) -> list[Breakdown] | None:
        """Start episode 0 of every environment, or the first later one that starts; returns those that did not."""
        self._seed = seed
        breakdowns = [broken for env in self._envs for broken in self._start_from(env, 0)]
        self._busy[0] = -1
        return breakdowns or None

    def step(self) -> list[Breakdown] | None:
        """One agent step of every environment, and the next episode's start where one ended or broke.

        Returns what broke, in order, or None: a reply without a payload is one byte.
        """
        breakdowns: list[Breakdown] = []
        for env in self._envs:
            self._busy[0] = env.index
            env.elapsed += 1
            outcome: StepOutcome | None = None
            try:
                outcome = env.simulator.step(env.action, env.final_obs)
                reason = broken_numbers(env.final_obs, outcome.reward, env.simulator.absurd)
            except EnvironmentFailure as error:
                reason = str(error)
            if outcome is None or reason is not None:
                breakdowns += self._restart_broken(env, reason or "")
            else:
                breakdowns += self._record(env, outcome)
        self._busy[0] = -1
        return breakdowns or None

    def load(self, seed: int, saved: list[Saved]) -> None:
        """Put every environment back to where it was: a seeded reset, then the same actions."""
        self._seed = seed
        for env, place in zip(self._envs, saved, strict=True):
            self._reset(env, place.episode)
            for action in place.actions:
                env.simulator.step(action, env.obs)
                env.elapsed += 1
            reason = broken_numbers(env.obs, 0.0, env.simulator.absurd)
            if reason is not None:
                raise EnvironmentFailure(
                    f"after {env.elapsed} steps of episode {env.episode} {reason}; {env.simulator.describe()}"
                )
        self._busy[0] = -1

    def _record(self, env: _Env, outcome: StepOutcome) -> list[Breakdown]:
        arrays, index = self._arrays, env.index
        truncated = not outcome.terminated and env.elapsed >= env.task.episode_length
        arrays.reward[index] = outcome.reward
        arrays.success[index] = outcome.success
        arrays.terminated[index] = outcome.terminated
        arrays.truncated[index] = truncated
        if outcome.terminated or truncated:
            return self._start_from(env, env.episode + 1)
        env.obs[:] = env.final_obs
        return []

    def _restart_broken(self, env: _Env, reason: str) -> list[Breakdown]:
        """Give up the environment's episode: its step counts for nothing, and the next episode begins."""
        arrays, index = self._arrays, env.index
        breakdown = Breakdown(index, reason, env.simulator.describe())
        unstarted = self._start_from(env, env.episode + 1)
        env.final_obs[:] = env.obs
        arrays.reward[index] = 0.0
        arrays.success[index] = np.nan
        arrays.terminated[index] = arrays.truncated[index] = False
        return [breakdown, *unstarted]

    def _start_from(self, env: _Env, episode: int) -> list[Breakdown]:
        """Start `episode`, or the first after it that starts; returns those that did not."""
        breakdowns: list[Breakdown] = []
        for attempt in range(MAX_FAILED_STARTS):
            try:
                self._reset(env, episode + attempt)
                reason = broken_numbers(env.obs, 0.0, env.simulator.absurd)
            except EnvironmentFailure as error:
                reason = str(error)
            if reason is None:
                return breakdowns
            breakdowns.append(Breakdown(env.index, reason, env.simulator.describe(), at_start=True))
        raise EnvironmentFailure(
            f"{MAX_FAILED_STARTS} episodes in a row could not start; the last, episode {env.episode}: {reason}; "
            f"{breakdowns[-1].state}"
        )

    def _reset(self, env: _Env, episode: int) -> None:
        self._busy[0] = env.index
        env.episode, env.elapsed = episode, 0
        env.simulator.reset(episode_seed(self._seed, env.index, episode), env.obs)


def group_handlers(members: Sequence[Member], buffers: SharedBuffers, worker: int) -> Handlers:
    """Build a group in the process that will own it; what that process answers to."""
    group = EnvironmentGroup(members, buffers, worker)
    return {
        STEP: lambda _: group.step(),
        RESET: group.reset,
        LOAD: lambda payload: group.load(*payload),
        CPU: lambda _: time.process_time(),
    }
