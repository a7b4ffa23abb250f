"""Where MuJoCo's warnings go. Imports no torch and no simulator."""

from __future__ import annotations

import logging
from typing import Any

_log = logging.getLogger("flowmbpo")


def log_warnings(mujoco: Any) -> None:
    """Hand the warnings of the module `mujoco` to logging, once in a process.

    Left alone it prints each of them and appends it to MUJOCO_LOG.TXT in the working directory. What
    matters of them reaches the user as an episode's fault.
    """
    if mujoco.get_mju_user_warning() is None:
        mujoco.set_mju_user_warning(_log.info)
