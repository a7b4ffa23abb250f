"""Where the dm_control environment of a task comes from. Imports no torch."""

from __future__ import annotations

import warnings
from types import ModuleType
from typing import Any

import numpy as np

from flowmbpo.errors import EnvironmentUnavailableError

_DOMAINS = {"cup": "ball_in_cup"}  # the field's short name


def suite_key(name: str) -> tuple[str, str]:
    """dm_control's domain and task behind a task's name: 'cup-catch' is ('ball_in_cup', 'catch')."""
    domain, _, task = name.partition("-")
    return _DOMAINS.get(domain, domain), task.replace("-", "_")


def _restore_in1d(quadruped: Any) -> None:
    """Give dm_control 1.0.28's quadruped the name that it still calls and numpy 2.4 dropped; numpy is left alone."""
    if "in1d" not in vars(quadruped.np):
        quadruped.np = ModuleType("numpy", "numpy, and in1d")
        vars(quadruped.np).update(vars(np), in1d=np.isin)


def load_suite_task(name: str) -> Any:
    """The dm_control environment of a task, of the suite or one of the extra ones.

    Its random state starts at seed 0; whoever steps it seeds `environment.task.random`. Raises
    EnvironmentUnavailableError where dm_control is missing.
    """
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*DISPLAY")  # of glfw, which nothing here needs
            from dm_control import suite
    except ImportError as error:
        raise EnvironmentUnavailableError(
            f"'{name}' needs dm_control, which cannot be imported here ({error}); "
            "install dm-control==1.0.28 with mujoco==3.3.0"
        ) from error
    _restore_in1d(suite.quadruped)
    from flowmbpo.envs.dmcontrol.extra.registry import EXTRA_ENVIRONMENTS

    random = np.random.RandomState(0)
    if name in EXTRA_ENVIRONMENTS:
        return EXTRA_ENVIRONMENTS[name](random)
    domain, task = suite_key(name)
    return suite.load(domain, task, task_kwargs={"random": random})
