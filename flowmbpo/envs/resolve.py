"""From a task's config to what really runs. Imports no torch and no simulator."""

from __future__ import annotations

from dataclasses import replace

from flowmbpo.config.task import TaskConfig
from flowmbpo.envs.simulators import SIMULATORS
from flowmbpo.envs.task_sets import TASK_SETS, task_set
from flowmbpo.envs.tasks import ALIASES, task_info, task_names
from flowmbpo.errors import ConfigError, nearest
from flowmbpo.spec import EnvSpec, TaskInfo

_PERTURBABLE = ("dmcontrol", "mujoco")


def task_spec(config: TaskConfig) -> EnvSpec:
    """The task or task set that `config` names, with the backend chosen. Raises ConfigError."""
    if config.set is None:
        assert config.name is not None
        return EnvSpec((_perturbed(task_info(config.name, config.backend), config),))
    tasks = tuple(_perturbed(task, config) for task in _members(config))
    return EnvSpec(tasks, config.set + config.perturbation.suffix)


def only_id(config: TaskConfig) -> int | None:
    """The id of the member that `config.only` names, None where all of them run. Raises ConfigError."""
    if config.only is None:
        return None
    spec = task_spec(config)
    member = member_id(spec, config.only)
    if member is None:
        names = [task.plain_name for task in spec.tasks]
        raise ConfigError(
            f"task.only: '{config.only}' is not one of the tasks of '{spec.label}'.{nearest(config.only, names)} "
            f"They are: {', '.join(names)}."
        )
    return member


def run_label(config: TaskConfig) -> str:
    """What really runs, as paths and reports name it: the task, the set, or the one member of it that runs."""
    spec, only = task_spec(config), only_id(config)
    return spec.label if only is None else spec.tasks[only].name


def running_tasks(config: TaskConfig) -> EnvSpec:
    """The tasks that are really stepped: the whole spec, or the one member that `only` names."""
    spec, only = task_spec(config), only_id(config)
    return spec if only is None else EnvSpec((spec.tasks[only],))


def pin_backend(config: TaskConfig) -> TaskConfig:
    """The same task or set with what runs here written out, where there is a choice.

    A task's `auto` is replaced by the backend, a set's aliases by the tasks that they mean.
    """
    if config.tasks is not None:
        names = tuple(task.name for task in _members(config))
        return config if names == config.tasks else config.model_copy(update={"tasks": names})
    if config.name is None or config.name not in ALIASES or config.backend != "auto":
        return config
    return config.model_copy(update={"backend": task_info(config.name).simulator})


def pin_as_stored(config: TaskConfig, stored: TaskConfig) -> TaskConfig:
    """`config` with the choices that it leaves open taken from `stored`, a run's own task or set."""
    if config.name is not None and config.name in ALIASES and config.name == stored.name and config.backend == "auto":
        return config.model_copy(update={"backend": stored.backend})
    if config.tasks is None or stored.tasks is None or len(config.tasks) != len(stored.tasks):
        return config
    pairs = zip(config.tasks, stored.tasks, strict=True)
    names = tuple(own if own in ALIASES.get(asked, {}).values() else asked for asked, own in pairs)
    return config.model_copy(update={"tasks": names})


def member_id(spec: EnvSpec, name: str) -> int | None:
    """The id of the task of `spec` that `name` means, a plain name or an alias; None where there is none."""
    own = [task.plain_name for task in spec.tasks]
    meant = [name] if name not in ALIASES else [task_info(name).name, *ALIASES[name].values()]
    return next((own.index(choice) for choice in meant if choice in own), None)


def backend_notice(config: TaskConfig) -> str | None:
    """What must be said loudly where an alias does not run on dflex; None elsewhere."""
    return "\n".join(backend_notices(config)) or None


def backend_notices(config: TaskConfig) -> list[str]:
    """One notice for every alias that does not run on dflex.

    Of a set's members, those count too that are named as the task which an alias may mean: a run's
    own config holds no aliases.
    """
    named: list[tuple[str, TaskInfo]] = []
    if config.set is not None:
        robots = {task: robot for robot, backends in ALIASES.items() for task in backends.values()}
        named = [(robots[task.name], task) for task in _members(config) if task.name in robots]
    elif config.name is not None and config.name in ALIASES:
        named = [(config.name, task_info(config.name, config.backend))]
    return [_notice(robot, task) for robot, task in named if task.simulator != "dflex"]


def _notice(robot: str, task: TaskInfo) -> str:
    why = "" if SIMULATORS["dflex"].installed else " (no dflex is installed here, which `backend: auto` would take)"
    return (
        f"'{robot}' runs as {task.name}{why}: {SIMULATORS[task.simulator].title}. The physics differ from "
        "dflex's, so no figure of this run may be compared with dflex's or with PWM's published ones; its path, "
        f"config, checkpoints and reports say {task.name}"
    )


def _members(config: TaskConfig) -> list[TaskInfo]:
    """The tasks of the config's set, in their order. Raises ConfigError."""
    assert config.set is not None
    if config.tasks is None:
        return [task_info(name) for name in task_set(config.set).tasks]
    if config.set in TASK_SETS or config.set in task_names():
        what = "a shipped set" if config.set in TASK_SETS else "a task"
        raise ConfigError(f"task.set: '{config.set}' is {what}; give yours another name")
    asked: dict[str, str] = {}
    members = []
    for name in config.tasks:
        task = task_info(name, key="task.tasks")
        if task.name in asked:
            raise ConfigError(
                f"task.tasks: '{asked[task.name]}' and '{name}' are the same task here, {task.name}; leave one out"
            )
        asked[task.name] = name
        members.append(task)
    return members


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
