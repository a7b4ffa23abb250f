"""The table of tasks: every name, its simulator and its widths. Imports no torch and no simulator.

Each simulator's rows lie in its own folder; this module unites them.
"""

from __future__ import annotations

from types import MappingProxyType

import flowmbpo.envs.dmcontrol.tasks as dmcontrol
import flowmbpo.envs.toy.tasks as toy
from flowmbpo.envs.spec import TaskInfo, task_discount
from flowmbpo.errors import ConfigError, nearest

NO_SIMULATOR = "none"
"""`TaskInfo.simulator` of a task whose dimensions are known but that nothing here can run."""

_ROWS = (
    *toy.TASKS,
    *dmcontrol.TASKS,
    TaskInfo("ant", NO_SIMULATOR, 37, 8, 1000, 1, task_discount(1000), can_terminate=True),
)
_TASKS = MappingProxyType({task.name: task for task in _ROWS})


def task_names() -> list[str]:
    """Every task that `task_info` knows, in the table's order."""
    return list(_TASKS)


def task_info(name: str, backend: str = "auto") -> TaskInfo:
    """The task called `name`; raises ConfigError where the name or the backend is not known.

    `backend` is 'auto' or the name of a simulator that has this task.
    """
    task = _TASKS.get(name)
    if task is None:
        raise ConfigError(f"task.name: no task is called '{name}'.{nearest(name, _TASKS)} Tasks: {', '.join(_TASKS)}.")
    allowed = ("auto",) if task.simulator == NO_SIMULATOR else ("auto", task.simulator)
    if backend not in allowed:
        raise ConfigError(
            f"task.backend: '{backend}' does not run '{name}'. "
            f"Allowed: {', '.join(allowed)}.{nearest(backend, allowed)}"
        )
    return task
