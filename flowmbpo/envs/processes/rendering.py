"""Pictures from a process of its own, started when the first one is asked for.

A broken OpenGL driver then cannot touch a simulation, and the simulators' choice of one, made once at import, stays
out of every other process. The picture is exact because the episode is replayed.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from flowmbpo.envs.episodes import episode_seed
from flowmbpo.envs.mujoco import RENDERING_HELP, rendering_variables
from flowmbpo.envs.processes.group import SimulatorFactory, checked_simulator, replay
from flowmbpo.envs.processes.worker import CPU, RENDER, Handlers, ProcessWorker, WorkerError
from flowmbpo.errors import EnvironmentUnavailableError
from flowmbpo.spec import TaskInfo


class FrameDrawer:
    """Follows one environment at a time and draws it."""

    def __init__(self, make: SimulatorFactory, task: TaskInfo) -> None:
        self._simulator = checked_simulator(make, task)
        self._obs = np.empty(task.obs_dim, dtype=np.float32)
        self._episode: tuple[int, int, int] | None = None
        self._actions = np.empty((0, task.action_dim), dtype=np.float32)

    def frame(self, episode: tuple[int, int, int], actions: np.ndarray) -> np.ndarray:
        """The picture of an episode (seed, environment, number) after `actions` [t, A], uint8 [height, width, 3]."""
        known = len(self._actions)
        goes_on = episode == self._episode and np.array_equal(self._actions, actions[:known])
        self._episode = None  # until the replay is through, nothing is known
        if goes_on:
            for action in actions[known:]:
                self._simulator.step(action, self._obs)
        else:
            replay(self._simulator, episode_seed(*episode), actions, self._obs)
        self._episode, self._actions = episode, actions
        return self._simulator.render()


def drawer_handlers(make: SimulatorFactory, task: TaskInfo) -> Handlers:
    """Build a drawer in the process that will own it; what that process answers to."""
    drawer = FrameDrawer(make, task)
    return {RENDER: lambda payload: drawer.frame(*payload), CPU: lambda _: time.process_time()}


class DrawingProcess:
    """Pictures from the handlers that `build` makes, in a process with an OpenGL backend that works."""

    def __init__(self, build: Callable[[], Handlers], task: str) -> None:
        """`build` is sent to the process, so it must pickle; `task` is named where nothing can draw."""
        self._build = build
        self._task = task
        self._worker: ProcessWorker | None = None

    def draw(self, payload: Any) -> np.ndarray:
        """The picture that the process's RENDER handler makes of `payload`, uint8 [height, width, 3].

        Raises EnvironmentUnavailableError, with each backend's reason, where nothing can draw.
        """
        if self._worker is not None:
            with contextlib.suppress(WorkerError):
                return np.asarray(self._worker.ask(RENDER, payload))
            self.close()  # and try afresh, with every backend
        reasons = []
        for variables in rendering_variables():
            worker = ProcessWorker(self._build, variables)
            try:
                worker.receive()
                picture = np.asarray(worker.ask(RENDER, payload))
            except WorkerError as error:
                worker.close()
                reasons.append(f"{variables.get('MUJOCO_GL', 'default')}: {error}")
            else:
                self._worker = worker
                return picture
        raise EnvironmentUnavailableError(
            f"'{self._task}' cannot be drawn on this machine ({'; '.join(reasons)}). {RENDERING_HELP}"
        )

    def cpu_seconds(self) -> float:
        """CPU time of the drawing process; 0 while there is none."""
        if self._worker is not None:
            with contextlib.suppress(WorkerError):
                return float(self._worker.ask(CPU))
            self.close()
        return 0.0

    def close(self) -> None:
        """End the drawing process; a later `draw` starts another."""
        if self._worker is not None:
            self._worker.close()
            self._worker = None
