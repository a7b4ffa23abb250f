"""What a worker process steps, without torch: simulators of single environments, over memory shared with its parent."""

from __future__ import annotations

import ctypes
import multiprocessing
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from flowmbpo.envs.processes.worker import CPU, DESCRIBE, REPLAY, START, STEP, Handlers
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

    An episode is determined by the seed that it is reset with and by its actions: saving and rendering replay it.
    EnvironmentFailure, and numbers that are not finite or absurd in size, break the episode: the next one begins. Any
    other error may be raised as it is, and ends the whole environment.
    """

    obs_dim: int
    action_dim: int

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
Members = Mapping[int, tuple[SimulatorFactory, TaskInfo]]  # by their places in the vector environment


class SharedSteps:
    """One step of N environments and what each of `workers` is at, in memory that processes share.

    Anonymous: it ends with the last process that maps it.
    """

    def __init__(self, num_envs: int, obs_dim: int, action_dim: int, workers: int) -> None:
        fields = [("action", "f4", (action_dim,)), ("obs", "f4", (obs_dim,))]
        self._row = np.dtype([*fields, ("reward", "f4"), ("success", "f4"), ("terminated", "?")], align=True)
        context = multiprocessing.get_context("spawn")
        self._rows: Any = context.RawArray(ctypes.c_byte, num_envs * self._row.itemsize)
        self._busy: Any = context.RawArray(ctypes.c_int32, max(workers, 1))

    def rows(self) -> np.ndarray:
        """Row i belongs to environment i, and only its worker writes its results; a view, in whichever process."""
        return np.frombuffer(self._rows, dtype=self._row)

    def busy(self) -> np.ndarray:
        """The environment that each worker is at, -1 while it waits; a view."""
        return np.ctypeslib.as_array(self._busy)


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


def replay(simulator: Simulator, seed: np.random.SeedSequence, actions: np.ndarray, obs: np.ndarray) -> None:
    """An episode from its start along `actions` [t, A]; `obs` then holds its last observation."""
    simulator.reset(seed, obs)
    for action in actions:
        simulator.step(action, obs)


class EnvironmentGroup:
    """The environments of one worker: started, stepped and replayed as the parent says, which judges their numbers.

    A task that is narrower than the set sees only its own entries of a row; nothing it does can
    depend on the padding, and the padding of its observations stays 0.
    """

    def __init__(self, members: Members, memory: SharedSteps, worker: int) -> None:
        self._rows = rows = memory.rows()
        self._busy = memory.busy()[worker : worker + 1]
        self._envs: dict[int, tuple[Simulator, np.ndarray, np.ndarray]] = {}  # with views of its action and observation
        for index in self._each(members):
            make, task = members[index]
            action, obs = rows["action"][index, : task.action_dim], rows["obs"][index, : task.obs_dim]
            self._envs[index] = (checked_simulator(make, task), action, obs)

    def start(self, seeds: dict[int, np.random.SeedSequence]) -> dict[int, str] | None:
        """Start an episode in each of these environments; returns those that refused, and why, or None.

        A reply without a payload is one byte.
        """
        failures = {}
        for index in self._each(seeds):
            simulator, _, obs = self._envs[index]
            try:
                simulator.reset(seeds[index], obs)
            except EnvironmentFailure as error:
                failures[index] = str(error)
        return failures or None

    def step(self) -> dict[int, str] | None:
        """One agent step of every environment; returns those that broke in it, and why, or None."""
        failures = {}
        for index in self._each(self._envs):
            simulator, action, obs = self._envs[index]
            try:
                outcome = simulator.step(action, obs)
            except EnvironmentFailure as error:
                failures[index] = str(error)
                continue
            row = self._rows[index]
            row["reward"], row["success"], row["terminated"] = outcome.reward, outcome.success, outcome.terminated
        return failures or None

    def replay(self, episodes: dict[int, tuple[np.random.SeedSequence, np.ndarray]]) -> None:
        """Put environments back to where they were: a seeded reset, then the same actions."""
        for index in self._each(episodes):
            simulator, _, obs = self._envs[index]
            replay(simulator, *episodes[index], obs)

    def describe(self, index: int) -> str | None:
        """What the simulator of an environment says of its state; None where it is another worker's."""
        return self._envs[index][0].describe() if index in self._envs else None

    def _each(self, indices: Iterable[int]) -> Iterator[int]:
        """These environments in turn, each marked while the worker is at it: a failure leaves the mark."""
        for index in indices:
            self._busy[0] = index
            yield index
        self._busy[0] = -1


def group_handlers(members: Members, memory: SharedSteps, worker: int) -> Handlers:
    """Build a group in the process that will own it; what that process answers to."""
    group = EnvironmentGroup(members, memory, worker)
    return {
        STEP: lambda _: group.step(),
        START: group.start,
        REPLAY: group.replay,
        DESCRIBE: group.describe,
        CPU: lambda _: time.process_time(),
    }
