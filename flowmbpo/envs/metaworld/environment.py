"""Where the Meta-World environment of a task comes from, without what no agent sees. Imports no torch.

Metaworld and MuJoCo are imported only where a task is made, because MuJoCo's import chooses the
OpenGL backend for good.
"""

from __future__ import annotations

import copy
import functools
import importlib
from typing import Any

import numpy as np

from flowmbpo.envs.mujoco import log_warnings
from flowmbpo.errors import EnvironmentUnavailableError


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

    It has not been reset. Raises EnvironmentUnavailableError where Meta-World is missing or lacks
    the task.
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
