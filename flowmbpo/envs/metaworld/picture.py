"""Pictures of a Meta-World scene. Imports no torch."""

from __future__ import annotations

import atexit
from typing import Any

import numpy as np

_HEIGHT, _WIDTH = 240, 320  # pixels


class Picture:
    """Draws states with a task's whole model: the one that is stepped has lost what is only looked at."""

    def __init__(self, path: str) -> None:
        """`path` is the task's XML file; raises what MuJoCo raises where no OpenGL backend works."""
        import mujoco

        self._mujoco = mujoco
        self._model = mujoco.MjModel.from_xml_path(path)
        self._data = mujoco.MjData(self._model)
        self._renderer = mujoco.Renderer(self._model, _HEIGHT, _WIDTH)
        atexit.register(self._renderer.close)  # while the OpenGL library is still loaded
        # A camera of our own, beside the robot and the right way up: the model's overviews stand on their heads.
        self._camera = mujoco.MjvCamera()
        self._camera.lookat[:] = 0.0, 0.6, 0.1
        self._camera.distance = 1.6
        self._camera.azimuth, self._camera.elevation = 145.0, -30.0  # degrees

    def draw(self, model: Any, data: Any) -> np.ndarray:
        """The state `data` of the lean model `model`, uint8 [240, 320, 3]."""
        self._model.body_pos[:], self._model.site_pos[:] = model.body_pos, model.site_pos
        self._data.qpos[:] = data.qpos
        self._data.mocap_pos[:], self._data.mocap_quat[:] = data.mocap_pos, data.mocap_quat
        self._mujoco.mj_forward(self._model, self._data)
        self._renderer.update_scene(self._data, camera=self._camera)
        frame: np.ndarray = self._renderer.render()
        return frame
