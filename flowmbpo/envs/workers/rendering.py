"""The parent's side of rendering: one drawing process, started when the first picture is asked for."""

from __future__ import annotations

from functools import partial

import numpy as np

from flowmbpo.envs.opengl import RENDERING_HELP, rendering_variables
from flowmbpo.envs.spec import TaskInfo
from flowmbpo.envs.workers.frames import drawer_handlers
from flowmbpo.envs.workers.group import Saved
from flowmbpo.envs.workers.process import ProcessWorker, WorkerError
from flowmbpo.envs.workers.server import CPU, RENDER
from flowmbpo.envs.workers.simulator import SimulatorFactory
from flowmbpo.errors import EnvironmentUnavailableError


class FrameSource:
    """Pictures of any copy, from a process that replays it."""

    def __init__(self, make: SimulatorFactory, task: TaskInfo) -> None:
        self._build = partial(drawer_handlers, make, task)
        self._task = task
        self._worker: ProcessWorker | None = None

    def frame(self, seed: int, place: Saved) -> np.ndarray:
        """The picture of a copy that stands at `place`, uint8 [height, width, 3].

        Raises EnvironmentUnavailableError, with each backend's reason, where nothing can draw.
        """
        if self._worker is not None:
            try:
                return self._ask(self._worker, seed, place)
            except WorkerError:
                self.close()  # and try afresh, with every backend
        reasons = []
        for variables in rendering_variables():
            worker = ProcessWorker(self._build, variables)
            try:
                worker.receive()
                picture = self._ask(worker, seed, place)
            except WorkerError as error:
                worker.close()
                reasons.append(f"{variables.get('MUJOCO_GL', 'default')}: {error}")
            else:
                self._worker = worker
                return picture
        raise EnvironmentUnavailableError(
            f"'{self._task.name}' cannot be drawn on this machine ({'; '.join(reasons)}). {RENDERING_HELP}"
        )

    def cpu_seconds(self) -> float:
        """CPU time of the drawing process; 0 while there is none."""
        if self._worker is None:
            return 0.0
        try:
            self._worker.send(CPU)
            return float(self._worker.receive())
        except WorkerError:
            self.close()
            return 0.0

    def close(self) -> None:
        """End the drawing process; a later `frame` starts another."""
        if self._worker is not None:
            self._worker.close()
            self._worker = None

    @staticmethod
    def _ask(worker: ProcessWorker, seed: int, place: Saved) -> np.ndarray:
        worker.send(RENDER, (seed, place))
        picture: np.ndarray = worker.receive()
        return picture
