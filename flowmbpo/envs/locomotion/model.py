"""MuJoCo and the compiled model of a robot. Imports no torch, and MuJoCo only when asked."""

from __future__ import annotations

import importlib
import os
from importlib import resources
from types import ModuleType
from typing import Any

from flowmbpo.envs.mujoco import NO_OPENGL, log_warnings
from flowmbpo.errors import EnvironmentUnavailableError


def import_mujoco(variables: dict[str, str] = NO_OPENGL) -> ModuleType:
    """The mujoco package, imported under these environment variables: by default without OpenGL.

    MuJoCo chooses its OpenGL backend once, at its first import; a process that trains keeps out of
    it whatever MUJOCO_GL says. Raises EnvironmentUnavailableError where it cannot be imported.
    """
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        importlib.import_module("mujoco.rollout")
        mujoco = importlib.import_module("mujoco")
        log_warnings(mujoco)
        return mujoco
    except ImportError as error:
        raise EnvironmentUnavailableError(
            f"task.name: this task needs mujoco, which cannot be imported here ({error}); install mujoco==3.3.0"
        ) from error
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def load_model(mujoco: ModuleType, model_file: str) -> Any:
    """The compiled `mujoco.MjModel` of a file in this folder."""
    text = resources.files(__package__).joinpath(model_file).read_text(encoding="ascii")
    return mujoco.MjModel.from_xml_string(text)
