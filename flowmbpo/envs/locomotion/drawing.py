"""Pictures of a robot, made in a process of their own. Imports no torch."""

from __future__ import annotations

import time

import numpy as np

from flowmbpo.envs.locomotion.model import import_mujoco, load_model
from flowmbpo.envs.processes.server import CPU, RENDER, Handlers

_HEIGHT, _WIDTH = 240, 320  # pixels
_CAMERA = "follow"


class PoseDrawer:
    """Draws one pose at a time, seen from a camera that follows the robot."""

    def __init__(self, model_file: str) -> None:
        # Under the backend that this process was started with.
        self._mujoco = import_mujoco({})
        self._model = load_model(self._mujoco, model_file)
        self._data = self._mujoco.MjData(self._model)
        self._renderer = self._mujoco.Renderer(self._model, _HEIGHT, _WIDTH)
        # The first picture of an OpenGL context can differ by a few units from later ones of the same pose.
        self.frame(self._data.qpos.copy())

    def frame(self, qpos: np.ndarray) -> np.ndarray:
        """The picture of positions [Q], uint8 [height, width, 3]."""
        self._data.qpos[:] = qpos
        self._mujoco.mj_forward(self._model, self._data)
        self._renderer.update_scene(self._data, camera=_CAMERA)
        picture: np.ndarray = self._renderer.render()
        return picture

    def handlers(self) -> Handlers:
        """What the process that owns this answers to."""
        return {RENDER: self.frame, CPU: lambda _: time.process_time()}


def drawer_handlers(model_file: str) -> Handlers:
    """Build a drawer in the process that will own it."""
    return PoseDrawer(model_file).handlers()
