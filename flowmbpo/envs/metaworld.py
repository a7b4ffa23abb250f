"""A Meta-World v3 task as a simulator for the workers.

As TD-MPC2 wraps it: the goal is observed and drawn anew at every episode, an action's repeats sum their rewards,
success is the last repeat's, and no episode terminates. What differs: the physics is v3, TD-MPC2's data are of v2; and
its wrapper takes a control step of zeros inside its reset but returns the observation from before. Here an episode
starts in the state that its first observation shows. Imports are late: MuJoCo's chooses the OpenGL backend for good.
"""

from __future__ import annotations

import atexit
import copy
import functools
import importlib
import math
from typing import Any

import numpy as np

from flowmbpo.envs.mujoco import MuJoCoSimulator, log_warnings
from flowmbpo.envs.processes.group import StepOutcome
from flowmbpo.errors import EnvironmentFailure, EnvironmentUnavailableError

_HEIGHT, _WIDTH = 240, 320  # pixels
_FRAME = 18  # entries of one observed instant: hand 3, gripper 1, objects 14
_FULLY_OPEN = 0.1  # metres between the fingers
_DOWNWARDS = np.array([1.0, 0.0, 1.0, 0.0])  # the hand's orientation, which actions do not change


class LeanEnvironment:
    """Overrides of a Meta-World v3 class; its trajectories stay bit-equal to those of the class as it is.

    The model holds no meshes and textures that are only looked at (3 MB instead of 21), and is
    compiled once per process. Control steps leave out the forces on bodies, which nothing reads.
    """

    model: Any
    data: Any
    fullpath: str
    still = False
    """Whether `do_simulation` leaves the physics alone."""

    def _initialize_simulation(self) -> tuple[Any, Any]:
        import mujoco

        model = copy.copy(_lean_model(self.fullpath))
        return model, mujoco.MjData(model)

    def do_simulation(self, ctrl: list[float], n_frames: int) -> None:
        import mujoco

        if not self.still:
            self.data.ctrl[:] = ctrl
            mujoco.mj_step(self.model, self.data, n_frames)

    def touching_object(self, object_geom_id: int) -> bool:
        """Whether both pads of the gripper press on a geom."""
        contact, force = self.data.contact, self.data.efc_force
        geoms, addresses = contact.geom, contact.efc_address
        of_object = (geoms == object_geom_id).any(axis=1)
        if not of_object.any():
            return False
        pads = (self.data.geom(name).id for name in ("leftpad_geom", "rightpad_geom"))
        # Summed one by one: NumPy's pairwise sum may round differently.
        return all(sum(force[addresses[of_object & (geoms == pad).any(axis=1)]].tolist()) > 0 for pad in pads)


def make_environment(name: str) -> Any:
    """The goal-observable v3 environment of task `name` ('mw-reach'), whose goals come from its `np_random`.

    It has not been reset. Raises EnvironmentUnavailableError where Meta-World is missing or lacks the task.
    """
    try:
        import mujoco

        classes = importlib.import_module("metaworld.env_dict").ALL_V3_ENVIRONMENTS
    except ImportError as error:
        raise EnvironmentUnavailableError(
            f"'{name}' needs Meta-World, which cannot be imported here ({error}); "
            "install metaworld==3.1.1 with mujoco==3.3.0"
        ) from error
    key = name.removeprefix("mw-") + "-v3"
    if key not in classes:
        raise EnvironmentUnavailableError(f"'{name}': the Meta-World that is installed has no '{key}'; install 3.1.1")
    log_warnings(mujoco)
    environment: Any = type(classes[key].__name__, (LeanEnvironment, classes[key]), {})()
    # What the class `<task>-v3-goal-observable` sets; that one also draws a goal from NumPy's global generator.
    environment._partially_observable = False
    environment._set_task_called = True
    del environment.sawyer_observation_space  # cached with the goal hidden
    environment._freeze_rand_vec = False
    environment.seeded_rand_vec = True
    return environment


@functools.cache
def _lean_model(path: str) -> Any:
    """The model of an XML file without what is only looked at; to be copied, never stepped.

    MuJoCo promises the same dynamics. Named geoms stay, because observations and rewards read them.
    """
    import mujoco

    spec = mujoco.MjSpec.from_file(path)
    named = [geom.name for geom in spec.geoms if geom.name]
    # A custom tuple has no effect but that what it refers to is kept.
    keep = spec.add_tuple()
    keep.name = "read_by_name"
    keep.objtype = [mujoco.mjtObj.mjOBJ_GEOM.value] * len(named)
    keep.objname = named
    keep.objprm = np.zeros(len(named))
    spec.compiler.discardvisual = True
    return spec.compile()


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
        return np.asarray(self._renderer.render())


class MetaWorldSimulator(MuJoCoSimulator):
    """One environment of a Meta-World task, without its limit of 500 control steps.

    `step` is Meta-World's own, bit for bit, without what the agent never sees: forces on bodies, look-ups by name,
    site positions that the next call overwrites.
    """

    def __init__(self, name: str, action_repeat: int) -> None:
        self._environment = environment = make_environment(name)
        self._bind(importlib.import_module("mujoco"), environment.model, environment.data)
        self._repeat = action_repeat
        self._hand, self._right, self._left = (self._data.body(body).id for body in ("hand", "rightclaw", "leftclaw"))
        space = environment.sawyer_observation_space
        self._low, self._high = space.low, space.high
        self._last = np.zeros(_FRAME)
        self._picture: Picture | None = None
        self.obs_dim = int(space.shape[0])
        self.action_dim = int(environment.action_space.shape[0])

    def reset(self, seed: np.random.SeedSequence, obs: np.ndarray) -> None:
        environment = self._environment
        environment.np_random = np.random.Generator(np.random.PCG64(seed))
        self._mujoco.mj_resetData(self._model, self._data)
        self._mujoco.mj_forward(self._model, self._data)
        # Meta-World resets twice. The first one's draws place the furniture in whose presence the hand comes to rest
        # in the second; its physics is thrown away, so it is not simulated.
        environment.still = True
        environment.reset_model()
        environment.still = False
        self._mujoco.mj_resetData(self._model, self._data)
        first = environment.reset_model()
        self._require_sound()
        self._last = first[:_FRAME].copy()
        first[_FRAME : 2 * _FRAME] = self._last
        obs[:] = first
        self._remember()

    def step(self, action: np.ndarray, obs: np.ndarray) -> StepOutcome:
        self._remember()
        reward, success = 0.0, math.nan
        full = self._low
        for _ in range(self._repeat):
            self._advance(action)
            full = self._observe()
            try:
                gained, details = self._environment.evaluate_state(full, action)
            except (ArithmeticError, AssertionError, ValueError) as error:  # how rewards refuse impossible states
                raise EnvironmentFailure(f"the reward is undefined ({error}); {self.describe()}") from error
            reward += gained
            success = float(details["success"])
        obs[:] = full
        return StepOutcome(float(reward), False, success)

    def _details(self) -> str:
        goal = np.asarray(self._environment._target_pos, dtype=np.float64)  # nan before the first episode
        return f"goal {np.round(goal, 4).tolist()}, "

    def render(self) -> np.ndarray:
        if self._picture is None:
            self._picture = Picture(self._environment.fullpath)
        return self._picture.draw(self._model, self._data)

    def _advance(self, action: np.ndarray) -> None:
        """One control step: the hand's target moves, the gripper pulls, the physics takes its substeps."""
        environment, data = self._environment, self._data
        target = data.mocap_pos[0] + action[:3] * environment.action_scale
        data.mocap_pos[0] = np.minimum(np.maximum(target, environment.mocap_low), environment.mocap_high)
        data.mocap_quat[0] = _DOWNWARDS
        environment.do_simulation([action[3], -action[3]], environment.frame_skip)
        self._mujoco.mj_forward(self._model, data)
        self._require_sound()

    def _observe(self) -> np.ndarray:
        """This instant, the one of the control step before, and the goal, bounded: float64 [39]."""
        environment, data = self._environment, self._data
        full = np.zeros(self.obs_dim)
        full[:3] = data.xpos[self._hand]
        apart = data.xpos[self._right] - data.xpos[self._left]
        full[3] = min(math.sqrt(apart.dot(apart)) / _FULLY_OPEN, 1.0)
        positions, rotations = environment._get_pos_objects(), environment._get_quat_objects()
        for place in range(len(positions) // 3):
            start = 4 + 7 * place
            full[start : start + 3] = positions[3 * place : 3 * place + 3]
            full[start + 3 : start + 7] = rotations[4 * place : 4 * place + 4]
        full[_FRAME : 2 * _FRAME] = self._last
        full[2 * _FRAME :] = environment._get_pos_goal()
        self._last = full[:_FRAME].copy()
        np.maximum(full, self._low, out=full)
        np.minimum(full, self._high, out=full)
        return full
