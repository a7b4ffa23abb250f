"""The robots' MuJoCo models, and pictures of them."""

from __future__ import annotations

import importlib
import time
from importlib import resources
from types import ModuleType
from typing import Any

import numpy as np

from flowmbpo.envs.mujoco import NO_OPENGL, environment_variables, log_warnings
from flowmbpo.envs.processes.worker import CPU, RENDER, Handlers
from flowmbpo.errors import EnvironmentUnavailableError


def import_mujoco(variables: dict[str, str] = NO_OPENGL) -> ModuleType:
    """The mujoco package, imported under these environment variables: by default without OpenGL.

    MuJoCo chooses its OpenGL backend once, at its first import; a process that trains keeps out of
    it whatever MUJOCO_GL says. Raises EnvironmentUnavailableError where it cannot be imported.
    """
    with environment_variables(variables):
        try:
            importlib.import_module("mujoco.rollout")
            mujoco = importlib.import_module("mujoco")
        except ImportError as error:
            raise EnvironmentUnavailableError(
                f"task.name: this task needs mujoco, which cannot be imported here ({error}); install mujoco==3.3.0"
            ) from error
        log_warnings(mujoco)
        return mujoco


def load_model(mujoco: ModuleType, model_file: str) -> Any:
    """The compiled `mujoco.MjModel` of a file in this folder."""
    text = resources.files(__package__).joinpath(model_file).read_text(encoding="ascii")
    return mujoco.MjModel.from_xml_string(text)


_HEIGHT, _WIDTH = 240, 320  # pixels


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
        self._renderer.update_scene(self._data, camera="follow")
        return np.asarray(self._renderer.render())


def drawer_handlers(model_file: str) -> Handlers:
    """Build a drawer in the process that will own it; what that process answers to."""
    return {RENDER: PoseDrawer(model_file).frame, CPU: lambda _: time.process_time()}
