"""N environments of one MuJoCo model, advanced together by several threads, and pictures of them."""

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


CONTROL_RATE = 60  # Hz


class BatchPhysics:
    """Positions, velocities and time of N environments; a control step is 1/60 s.

    A control step is a function of the environment's positions, velocities and torques alone: the solver
    starts each from zero accelerations rather than from those of the step before, so what is saved
    is the whole state, and which thread steps a copy cannot matter. MuJoCo's own reset of diverged
    environments is off (in the model files): their numbers go on to where the caller finds them.
    """

    def __init__(self, model_file: str, num_envs: int, threads: int) -> None:
        """`threads` more than environments are not made; 0 and 1 step in the calling thread."""
        mujoco = import_mujoco()
        model = load_model(mujoco, model_file)
        self.num_positions, self.num_velocities = int(model.nq), int(model.nv)
        self._substeps = round(1 / (CONTROL_RATE * model.opt.timestep))
        threads = max(min(threads, num_envs), 1)
        self._pool = mujoco.rollout.Rollout(nthread=threads if threads > 1 else 0)
        self._models = [model] * num_envs
        self._workspaces = [mujoco.MjData(model) for _ in range(threads)]
        self._control_kind = mujoco.mjtState.mjSTATE_CTRL.value
        size = mujoco.mj_stateSize(model, mujoco.mjtState.mjSTATE_FULLPHYSICS.value)
        assert size == 1 + self.num_positions + self.num_velocities, "the model has activations or plugins"
        self.state = np.zeros((num_envs, size))
        """Time (s since the start), positions, velocities of each environment, [N, 1 + Q + V]; may be written to."""
        self.time, self.qpos = self.state[:, 0], self.state[:, 1 : 1 + self.num_positions]
        self.qvel = self.state[:, 1 + self.num_positions :]  # views, as the two before
        self._torques = np.zeros((num_envs, self._substeps, int(model.nu)))
        self._trace = np.zeros((num_envs, self._substeps, size))
        self._sensors = np.zeros((num_envs, self._substeps, int(model.nsensordata)))

    def step(self, control: np.ndarray) -> None:
        """One control step of every environment under constant `control` [N, A] in [-1, 1]."""
        self._torques[:] = control[:, None]
        self._pool.rollout(
            self._models,
            self._workspaces,
            self.state,
            self._torques,
            control_spec=self._control_kind,
            skip_checks=True,
            nstep=self._substeps,
            state=self._trace,
            sensordata=self._sensors,
        )
        self.state[:] = self._trace[:, -1]

    def close(self) -> None:
        """End the threads; safe to call twice."""
        self._pool.close()


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


def drawer_handlers(model_file: str) -> Handlers:
    """Build a drawer in the process that will own it; what that process answers to."""
    return {RENDER: PoseDrawer(model_file).frame, CPU: lambda _: time.process_time()}
