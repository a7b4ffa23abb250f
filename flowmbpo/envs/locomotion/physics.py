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

_HEIGHT, _WIDTH = 240, 320  # pixels


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


def drawer_handlers(model_file: str) -> Handlers:
    """What the process that draws answers to: pictures of one pose at a time, from a camera that follows the robot."""
    mujoco = import_mujoco({})  # under the backend that this process was started with
    model = load_model(mujoco, model_file)
    data, renderer = mujoco.MjData(model), mujoco.Renderer(model, _HEIGHT, _WIDTH)

    def frame(qpos: np.ndarray) -> np.ndarray:
        """The picture of positions [Q], uint8 [height, width, 3]."""
        data.qpos[:] = qpos
        mujoco.mj_forward(model, data)
        renderer.update_scene(data, camera="follow")
        return np.asarray(renderer.render())

    # The first picture of an OpenGL context can differ by a few units from later ones of the same pose.
    frame(data.qpos.copy())
    return {RENDER: frame, CPU: lambda _: time.process_time()}
