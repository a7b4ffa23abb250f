"""The copy that draws pictures: it lives in a process of its own. Imports no torch.

A broken OpenGL driver then cannot touch a simulation, and the choice of a driver, which the
simulators make once at import, stays out of every other process. The picture is exact because the
episode is replayed, one more step for each frame of a video.
"""

from __future__ import annotations

import time

import numpy as np

from flowmbpo.envs.contract import episode_seed
from flowmbpo.envs.processes.group import Saved, checked_simulator
from flowmbpo.envs.processes.server import CPU, RENDER, Handlers
from flowmbpo.envs.processes.simulator import SimulatorFactory
from flowmbpo.spec import TaskInfo


class FrameDrawer:
    """Follows one copy at a time and draws it."""

    def __init__(self, make: SimulatorFactory, task: TaskInfo) -> None:
        self._simulator = checked_simulator(make, task)
        self._obs = np.empty(task.obs_dim, dtype=np.float32)
        self._episode: tuple[int, int, int] | None = None
        self._actions = np.empty((0, task.action_dim), dtype=np.float32)

    def handlers(self) -> Handlers:
        """What the process that owns this answers to."""
        return {RENDER: lambda payload: self.frame(*payload), CPU: lambda _: time.process_time()}

    def frame(self, seed: int, place: Saved) -> np.ndarray:
        """The picture of a copy that stands at `place`, uint8 [height, width, 3]."""
        episode = (seed, place.index, place.episode)
        known = len(self._actions)
        if episode != self._episode or not np.array_equal(self._actions, place.actions[:known]):
            self._simulator.reset(episode_seed(*episode), self._obs)
            known = 0
        self._episode = None  # until the replay is through, nothing is known
        for action in place.actions[known:]:
            self._simulator.step(action, self._obs)
        self._episode, self._actions = episode, place.actions
        return self._simulator.render()


def drawer_handlers(make: SimulatorFactory, task: TaskInfo) -> Handlers:
    """Build a drawer in the process that will own it."""
    return FrameDrawer(make, task).handlers()
