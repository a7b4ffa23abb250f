"""Whether dflex is installed, found without importing it. Imports no torch."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import MappingProxyType

from flowmbpo.errors import EnvironmentUnavailableError

INSTALL = 'pip install "git+https://github.com/imgeorgiev/DiffRL.git#subdirectory=dflex"'
LICENCE = "NVIDIA Source Code License: non-commercial use only (research and evaluation)"

_INSTEAD = MappingProxyType(
    {
        "dflex-ant": "mujoco-ant",
        "dflex-hopper": "mujoco-hopper",
        "dflex-anymal": "quadruped-walk",
        "dflex-humanoid": "humanoid-walk",
        "dflex-snu-humanoid": "humanoid-walk",
        "dflex-cartpole": "toy-cartpole-swingup",
        "dflex-double-pendulum": "acrobot-swingup",
    }
)


def installed() -> bool:
    """Whether `import dflex` would find the simulator; nothing is imported or compiled."""
    return package_folder() is not None


def package_folder() -> Path | None:
    """The folder of the installed package, or None. A mere folder or file called dflex on the path is not it."""
    spec = importlib.util.find_spec("dflex")
    if spec is None or spec.origin is None or spec.submodule_search_locations is None:
        return None
    return Path(spec.origin).parent


def require_package(task: str) -> Path:
    """The package's folder; raises EnvironmentUnavailableError, with what to do, where there is none."""
    folder = package_folder()
    if folder is None:
        raise EnvironmentUnavailableError(
            f"task.name: '{task}' runs on dflex, which is not installed. Its licence is non-commercial and it is no "
            f"part of this project; if your use is allowed, install it: {INSTALL}  "
            f"Otherwise take {_INSTEAD[task]}, whose physics differ."
        )
    return folder
