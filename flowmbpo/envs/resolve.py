"""From a task's config to what really runs, once for a run. No simulator is started."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

from flowmbpo.config.task import TaskConfig
from flowmbpo.envs.simulators import SIMULATORS
from flowmbpo.envs.task_sets import TASK_SETS, task_set
from flowmbpo.envs.tasks import ALIASES, task_info, task_names
from flowmbpo.errors import ConfigError, nearest
from flowmbpo.spec import EnvSpec, TaskInfo

_PERTURBABLE = ("dmcontrol", "mujoco")


@dataclass(frozen=True)
class ResolvedTask:
    """A task or task set with the backend chosen: what the agent is built for, and what of it is stepped.

    `config` has every choice written out: a task's backend where there are several, a set's members by name.
    `spec` holds all tasks that the agent knows; `only` is the id of the one member that runs, None where all do.
    """

    config: TaskConfig
    spec: EnvSpec
    only: int | None = None

    @property
    def running(self) -> EnvSpec:
        """The tasks that are really stepped."""
        return self.spec if self.only is None else EnvSpec((self.spec.tasks[self.only],))

    @cached_property
    def label(self) -> str:
        """What really runs, as paths and reports name it."""
        return self.running.label

    def alone(self, member: int | None) -> ResolvedTask:
        """The same with the member `member` alone running; with None as it is."""
        return self if member is None else replace(self, only=member)

    def member(self, name: str) -> int | None:
        """The id of the task that `name` means, a plain name or an alias; None where there is none."""
        own = [task.plain_name for task in self.spec.tasks]
        meant = [name] if name not in ALIASES else [task_info(name).name, *ALIASES[name].values()]
        return next((own.index(choice) for choice in meant if choice in own), None)

    @property
    def notices(self) -> list[str]:
        """What must be said loudly: one notice for every alias that does not run on dflex.

        Of a set's members, those count too that are named as the task which an alias may mean: a run's
        own config holds no aliases.
        """
        if self.config.set is not None:
            robots = {task: robot for robot, backends in ALIASES.items() for task in backends.values()}
            named = [(robots[task.plain_name], task) for task in self.spec.tasks if task.plain_name in robots]
        else:
            assert self.config.name is not None
            named = [(self.config.name, self.spec.tasks[0])] if self.config.name in ALIASES else []
        why = "" if SIMULATORS["dflex"].installed else " (no dflex is installed here, which `backend: auto` would take)"
        return [
            f"'{robot}' runs as {task.plain_name}{why}: {SIMULATORS[task.simulator].title}. The physics differ from "
            "dflex's, so no figure of this run may be compared with dflex's or with PWM's published ones; its path, "
            f"config, checkpoints and reports say {task.plain_name}"
            for robot, task in named
            if task.simulator != "dflex"
        ]


def resolve(config: TaskConfig) -> ResolvedTask:
    """The task or task set that `config` names, with the backends that run here. Raises ConfigError."""
    if config.set is None:
        assert config.name is not None
        task = task_info(config.name, config.backend)
        chosen = task.simulator if config.name in ALIASES else config.backend
        return ResolvedTask(config.model_copy(update={"backend": chosen}), EnvSpec((_perturbed(task, config),)))
    members = _members(config)
    spec = EnvSpec(tuple(_perturbed(task, config) for task in members), config.set + config.perturbation.suffix)
    if config.tasks is not None:
        config = config.model_copy(update={"tasks": tuple(task.name for task in members)})
    resolved = ResolvedTask(config, spec)
    member = None if config.only is None else resolved.member(config.only)
    if config.only is not None and member is None:
        names = [task.plain_name for task in spec.tasks]
        raise ConfigError(
            f"task.only: '{config.only}' is not one of the tasks of '{spec.label}'.{nearest(config.only, names)} "
            f"They are: {', '.join(names)}."
        )
    return resolved.alone(member)


def pin_as_stored(config: TaskConfig, stored: TaskConfig) -> TaskConfig:
    """`config` with the choices that it leaves open taken from `stored`, a run's own task or set."""
    if config.name is not None and config.name in ALIASES and config.name == stored.name and config.backend == "auto":
        return config.model_copy(update={"backend": stored.backend})
    if config.tasks is None or stored.tasks is None or len(config.tasks) != len(stored.tasks):
        return config
    pairs = zip(config.tasks, stored.tasks, strict=True)
    names = tuple(own if own in ALIASES.get(asked, {}).values() else asked for asked, own in pairs)
    return config.model_copy(update={"tasks": names})


def _members(config: TaskConfig) -> list[TaskInfo]:
    assert config.set is not None
    if config.tasks is None:
        return [task_info(name) for name in task_set(config.set)]
    if config.set in TASK_SETS or config.set in task_names():
        what = "a shipped set" if config.set in TASK_SETS else "a task"
        raise ConfigError(f"task.set: '{config.set}' is {what}; give yours another name")
    asked: dict[TaskInfo, str] = {}
    for name in config.tasks:
        task = task_info(name, key="task.tasks")
        if task in asked:
            raise ConfigError(
                f"task.tasks: '{asked[task]}' and '{name}' are the same task here, {task.name}; leave one out"
            )
        asked[task] = name
    return list(asked)


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
