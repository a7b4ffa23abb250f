"""Several copies, stepped one after another by one worker. Imports no torch."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from flowmbpo.envs.faults import broken_numbers
from flowmbpo.envs.seeding import episode_seed
from flowmbpo.envs.spec import TaskInfo
from flowmbpo.envs.workers.buffers import SharedBuffers
from flowmbpo.envs.workers.server import CPU, LOAD, RESET, STEP, Handlers
from flowmbpo.envs.workers.simulator import Outcome, Simulator, SimulatorFactory
from flowmbpo.errors import EnvironmentFailure


@dataclass(frozen=True)
class Saved:
    """Where one copy stands: its episode's number and the actions since that episode began."""

    index: int
    episode: int
    actions: np.ndarray  # float32 [t, A]


@dataclass(frozen=True)
class Member:
    """A copy that a group is to own: its place in the vector environment and what it runs."""

    index: int
    task: TaskInfo
    make: SimulatorFactory


@dataclass(frozen=True)
class Breakdown:
    """A copy whose simulator broke in a step, and how."""

    index: int
    reason: str
    state: str


@dataclass
class _Copy:
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
    """Copies of one or several tasks: stepped, reset at their episodes' ends, replayed."""

    def __init__(self, members: Sequence[Member], buffers: SharedBuffers, worker: int) -> None:
        arrays = buffers.arrays()
        self._arrays = arrays
        self._busy = arrays.busy[worker : worker + 1]
        self._seed = 0
        self._copies: list[_Copy] = []
        for member in members:
            index, task = member.index, member.task
            self._busy[0] = index
            self._copies.append(
                _Copy(
                    index=index,
                    simulator=checked_simulator(member.make, task),
                    task=task,
                    action=arrays.action[index, : task.action_dim],
                    obs=arrays.obs[index, : task.obs_dim],
                    final_obs=arrays.final_obs[index, : task.obs_dim],
                )
            )
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

    def step(self) -> list[Breakdown] | None:
        """One agent step of every copy, and the next episode's start where one ended or broke.

        Returns the copies that broke, or None: a reply without a payload is one byte.
        """
        breakdowns = []
        for copy in self._copies:
            self._busy[0] = copy.index
            copy.elapsed += 1
            outcome: Outcome | None = None
            try:
                outcome = copy.simulator.step(copy.action, copy.final_obs)
                reason = broken_numbers(copy.final_obs, outcome.reward)
            except EnvironmentFailure as error:
                reason = str(error)
            if outcome is None or reason is not None:
                breakdowns.append(self._restart_broken(copy, reason or ""))
            else:
                self._record(copy, outcome)
        self._busy[0] = -1
        return breakdowns or None

    def load(self, seed: int, saved: list[Saved]) -> None:
        """Put every copy back to where it was: a seeded reset, then the same actions."""
        self._seed = seed
        for copy, place in zip(self._copies, saved, strict=True):
            self._start(copy, place.episode)
            for action in place.actions:
                copy.simulator.step(action[: copy.task.action_dim], copy.obs)
                copy.elapsed += 1
            self._require_sound(copy)
        self._busy[0] = -1

    def _record(self, copy: _Copy, outcome: Outcome) -> None:
        arrays, index = self._arrays, copy.index
        truncated = not outcome.terminated and copy.elapsed >= copy.task.episode_length
        arrays.reward[index] = outcome.reward
        arrays.success[index] = outcome.success
        arrays.terminated[index] = outcome.terminated
        arrays.truncated[index] = truncated
        if outcome.terminated or truncated:
            self._start(copy, copy.episode + 1)
        else:
            copy.obs[:] = copy.final_obs

    def _restart_broken(self, copy: _Copy, reason: str) -> Breakdown:
        """Give up the copy's episode: its step counts for nothing, and the next episode begins."""
        arrays, index = self._arrays, copy.index
        breakdown = Breakdown(index, reason, copy.simulator.describe())
        self._start(copy, copy.episode + 1)
        copy.final_obs[:] = copy.obs
        arrays.reward[index] = 0.0
        arrays.success[index] = np.nan
        arrays.terminated[index] = arrays.truncated[index] = False
        return breakdown

    def _start(self, copy: _Copy, episode: int) -> None:
        self._busy[0] = copy.index
        copy.episode, copy.elapsed = episode, 0
        copy.simulator.reset(episode_seed(self._seed, copy.index, episode), copy.obs)
        self._require_sound(copy)

    def _require_sound(self, copy: _Copy) -> None:
        reason = broken_numbers(copy.obs, 0.0)
        if reason is not None:
            raise EnvironmentFailure(
                f"after {copy.elapsed} steps of episode {copy.episode} {reason}; {copy.simulator.describe()}"
            )


def group_handlers(members: Sequence[Member], buffers: SharedBuffers, worker: int) -> Handlers:
    """Build a group in the process that will own it."""
    return EnvironmentGroup(members, buffers, worker).handlers()
