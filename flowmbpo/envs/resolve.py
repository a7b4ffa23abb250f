"""From a task's config to what really runs. Imports no torch and no simulator."""

from __future__ import annotations

from dataclasses import replace

from flowmbpo.envs.config import TaskConfig
from flowmbpo.envs.simulators import SIMULATORS
from flowmbpo.envs.spec import EnvSpec, TaskInfo
from flowmbpo.envs.task_sets import TASK_SETS, task_set
from flowmbpo.envs.tasks import ALIASES, task_info
from flowmbpo.errors import ConfigError

_PERTURBABLE = ("dmcontrol", "mujoco")


def task_spec(config: TaskConfig) -> EnvSpec:
    """The task or task set that `config` names, with the backend chosen. Raises ConfigError."""
    if config.set is None:
        assert config.name is not None
        return EnvSpec((_perturbed(task_info(config.name, config.backend), config),))
    if config.tasks is None:
        names = task_set(config.set).tasks
    elif config.set in TASK_SETS:
        raise ConfigError(f"task.set: '{config.set}' is a shipped set; give yours another name")
    else:
        names = config.tasks
    tasks = tuple(_perturbed(task_info(name), config) for name in names)
    return EnvSpec(tasks, config.set + config.perturbation.suffix)


def pin_backend(config: TaskConfig) -> TaskConfig:
    """The same task with `auto` replaced by the backend that runs it here, where there is a choice."""
    if config.name is None or config.name not in ALIASES or config.backend != "auto":
        return config
    return config.model_copy(update={"backend": task_info(config.name).simulator})


def backend_notice(config: TaskConfig) -> str | None:
    """What must be said loudly where an alias does not run on dflex; None elsewhere."""
    if config.name is None or config.name not in ALIASES:
        return None
    task = task_info(config.name, config.backend)
    if task.simulator == "dflex":
        return None
    why = "" if SIMULATORS["dflex"].installed else " (dflex is not installed here)"
    return (
        f"'{config.name}' runs as {task.name}{why}: {SIMULATORS[task.simulator].title}. The physics differ from "
        "dflex's, so no figure of this run may be compared with dflex's or with PWM's published ones; its path, "
        f"config, checkpoints and reports say {task.name}"
    )


def _perturbed(task: TaskInfo, config: TaskConfig) -> TaskInfo:
    suffix = config.perturbation.suffix
    if not suffix:
        return task
    if task.simulator not in _PERTURBABLE:
        raise ConfigError(
            f"task.perturbation: '{task.name}' cannot be disturbed; DMControl's tasks, mujoco-ant and mujoco-hopper "
            "can. Set task.perturbation.rate to 0"
        )
    return replace(task, name=task.name + suffix)
