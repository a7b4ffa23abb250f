"""Several copies, stepped one after another by one worker. Imports no torch."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from flowmbpo.envs.contract import MAX_FAILED_STARTS, broken_numbers, episode_seed
from flowmbpo.envs.processes.buffers import SharedBuffers
from flowmbpo.envs.processes.server import CPU, LOAD, RESET, STEP, Handlers
from flowmbpo.envs.processes.simulator import Outcome, Simulator, SimulatorFactory
from flowmbpo.errors import EnvironmentFailure
from flowmbpo.spec import TaskInfo


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
    """A copy whose simulator broke in a step, or could not start the episode `at_start`, and how."""

    index: int
    reason: str
    state: str
    at_start: bool = False


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

    def reset(self, seed: int) -> list[Breakdown] | None:
        """Start episode 0 of every copy, or the first later one that starts; returns those that did not."""
        self._seed = seed
        breakdowns = [broken for copy in self._copies for broken in self._start_from(copy, 0)]
        self._busy[0] = -1
        return breakdowns or None

    def step(self) -> list[Breakdown] | None:
        """One agent step of every copy, and the next episode's start where one ended or broke.

        Returns what broke, in order, or None: a reply without a payload is one byte.
        """
        breakdowns: list[Breakdown] = []
        for copy in self._copies:
            self._busy[0] = copy.index
            copy.elapsed += 1
            outcome: Outcome | None = None
            try:
                outcome = copy.simulator.step(copy.action, copy.final_obs)
                reason = broken_numbers(copy.final_obs, outcome.reward, copy.simulator.absurd)
            except EnvironmentFailure as error:
                reason = str(error)
            if outcome is None or reason is not None:
                breakdowns += self._restart_broken(copy, reason or "")
            else:
                breakdowns += self._record(copy, outcome)
        self._busy[0] = -1
        return breakdowns or None

    def load(self, seed: int, saved: list[Saved]) -> None:
        """Put every copy back to where it was: a seeded reset, then the same actions."""
        self._seed = seed
        for copy, place in zip(self._copies, saved, strict=True):
            self._reset(copy, place.episode)
            for action in place.actions:
                copy.simulator.step(action, copy.obs)
                copy.elapsed += 1
            reason = broken_numbers(copy.obs, 0.0, copy.simulator.absurd)
            if reason is not None:
                raise EnvironmentFailure(
                    f"after {copy.elapsed} steps of episode {copy.episode} {reason}; {copy.simulator.describe()}"
                )
        self._busy[0] = -1

    def _record(self, copy: _Copy, outcome: Outcome) -> list[Breakdown]:
        arrays, index = self._arrays, copy.index
        truncated = not outcome.terminated and copy.elapsed >= copy.task.episode_length
        arrays.reward[index] = outcome.reward
        arrays.success[index] = outcome.success
        arrays.terminated[index] = outcome.terminated
        arrays.truncated[index] = truncated
        if outcome.terminated or truncated:
            return self._start_from(copy, copy.episode + 1)
        copy.obs[:] = copy.final_obs
        return []

    def _restart_broken(self, copy: _Copy, reason: str) -> list[Breakdown]:
        """Give up the copy's episode: its step counts for nothing, and the next episode begins."""
        arrays, index = self._arrays, copy.index
        breakdown = Breakdown(index, reason, copy.simulator.describe())
        unstarted = self._start_from(copy, copy.episode + 1)
        copy.final_obs[:] = copy.obs
        arrays.reward[index] = 0.0
        arrays.success[index] = np.nan
        arrays.terminated[index] = arrays.truncated[index] = False
        return [breakdown, *unstarted]

    def _start_from(self, copy: _Copy, episode: int) -> list[Breakdown]:
        """Start `episode`, or the first after it that starts; returns those that did not."""
        breakdowns: list[Breakdown] = []
        for attempt in range(MAX_FAILED_STARTS):
            try:
                self._reset(copy, episode + attempt)
                reason = broken_numbers(copy.obs, 0.0, copy.simulator.absurd)
            except EnvironmentFailure as error:
                reason = str(error)
            if reason is None:
                return breakdowns
            breakdowns.append(Breakdown(copy.index, reason, copy.simulator.describe(), at_start=True))
        raise EnvironmentFailure(
            f"{MAX_FAILED_STARTS} episodes in a row could not start; the last, episode {copy.episode}: {reason}; "
            f"{breakdowns[-1].state}"
        )

    def _reset(self, copy: _Copy, episode: int) -> None:
        self._busy[0] = copy.index
        copy.episode, copy.elapsed = episode, 0
        copy.simulator.reset(episode_seed(self._seed, copy.index, episode), copy.obs)


def group_handlers(members: Sequence[Member], buffers: SharedBuffers, worker: int) -> Handlers:
    """Build a group in the process that will own it."""
    return EnvironmentGroup(members, buffers, worker).handlers()
