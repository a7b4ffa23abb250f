"""The table of tasks: every name, its simulator and its widths. Imports no torch and no simulator.

Each simulator's rows lie in its own folder; this module unites them.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import flowmbpo.envs.dflex.tasks as dflex
import flowmbpo.envs.dmcontrol.tasks as dmcontrol
import flowmbpo.envs.locomotion.tasks as locomotion
import flowmbpo.envs.metaworld.tasks as metaworld
import flowmbpo.envs.rewarped.tasks as rewarped
import flowmbpo.envs.toy.tasks as toy
from flowmbpo.envs.simulators import SIMULATORS
from flowmbpo.envs.task_sets import TASK_SETS
from flowmbpo.errors import ConfigError, nearest
from flowmbpo.spec import TaskInfo

_ROWS = (*toy.TASKS, *locomotion.TASKS, *dmcontrol.TASKS, *metaworld.TASKS, *dflex.TASKS, *rewarped.TASKS)
_TASKS = MappingProxyType({task.name: task for task in _ROWS})

ALIASES: Mapping[str, Mapping[str, str]] = MappingProxyType(
    {
        robot: MappingProxyType(
            {
                backend: f"{backend}-{robot}"
                for backend in ("dflex", "mujoco", "rewarped")
                if f"{backend}-{robot}" in _TASKS
            }
        )
        for robot in ("ant", "hopper")
    }
)
"""Tasks that several simulators have, each with physics of its own: backend to the task that really runs."""
_AUTOMATIC = ("dflex", "mujoco")  # what `auto` tries; rewarped only by name


def task_names() -> list[str]:
    """Every name that `task_info` knows: the table's in its order, then the aliases."""
    return [*_TASKS, *ALIASES]


def task_info(name: str, backend: str = "auto", *, key: str = "task.name") -> TaskInfo:
    """The task called `name`; raises ConfigError where the name or the backend is not known.

    `backend` is 'auto' or the name of a simulator that has this task. An alias gives the task of
    the simulator that runs it: with 'auto' dflex where it is installed, otherwise MuJoCo. `key` is
    where the config names it, for the message.
    """
    if name in ALIASES:
        allowed = ("auto", *ALIASES[name])
        _check_backend(name, backend, allowed)
        if backend == "auto":
            backend = next((choice for choice in _AUTOMATIC if SIMULATORS[choice].installed), _AUTOMATIC[-1])
        return _TASKS[ALIASES[name][backend]]
    task = _TASKS.get(name)
    if task is None:
        raise ConfigError(f"{key}: no task is called '{name}'.{_hint(name)} `flowmbpo envs list` shows all.")
    _check_backend(name, backend, ("auto", task.simulator))
    return task


def _hint(name: str) -> str:
    if name in TASK_SETS:
        return f" It is a task set: give task.set={name} and task.name=null."
    return nearest(name, task_names())


def _check_backend(name: str, backend: str, allowed: tuple[str, ...]) -> None:
    if backend not in allowed:
        raise ConfigError(
            f"task.backend: '{backend}' does not run '{name}'. "
            f"Allowed: {', '.join(allowed)}.{nearest(backend, allowed)}"
        )
