"""Where dflex is installed, found without importing it. Imports no torch."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from flowmbpo.envs.simulators import require_installed


def package_folder(task: str) -> Path:
    """The folder of the installed package; raises EnvironmentUnavailableError, with what to do, where there is none."""
    require_installed("dflex", task)
    spec = importlib.util.find_spec("dflex")
    assert spec is not None and spec.origin is not None
    return Path(spec.origin).parent
