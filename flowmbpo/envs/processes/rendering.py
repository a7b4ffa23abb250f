"""The parent's side of rendering: one drawing process, started when the first picture is asked for."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from flowmbpo.envs.mujoco import RENDERING_HELP, rendering_variables
from flowmbpo.envs.processes.frames import drawer_handlers
from flowmbpo.envs.processes.group import Saved
from flowmbpo.envs.processes.process import ProcessWorker, WorkerError
from flowmbpo.envs.processes.server import CPU, RENDER, Handlers
from flowmbpo.envs.processes.simulator import SimulatorFactory
from flowmbpo.errors import EnvironmentUnavailableError
from flowmbpo.spec import TaskInfo


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
            try:
                return self._ask(self._worker, payload)
            except WorkerError:
                self.close()  # and try afresh, with every backend
        reasons = []
        for variables in rendering_variables():
            worker = ProcessWorker(self._build, variables)
            try:
                worker.receive()
                picture = self._ask(worker, payload)
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
        if self._worker is None:
            return 0.0
        try:
            self._worker.send(CPU)
            return float(self._worker.receive())
        except WorkerError:
            self.close()
            return 0.0

    def close(self) -> None:
        """End the drawing process; a later `draw` starts another."""
        if self._worker is not None:
            self._worker.close()
            self._worker = None

    @staticmethod
    def _ask(worker: ProcessWorker, payload: Any) -> np.ndarray:
        worker.send(RENDER, payload)
        picture: np.ndarray = worker.receive()
        return picture


class FrameSource(DrawingProcess):
    """Pictures of any copy, from a process that replays it."""

    def __init__(self, make: SimulatorFactory, task: TaskInfo) -> None:
        super().__init__(partial(drawer_handlers, make, task), task.name)

    def frame(self, seed: int, place: Saved) -> np.ndarray:
        """The picture of a copy that stands at `place`, as `draw`."""
        return self.draw((seed, place))
