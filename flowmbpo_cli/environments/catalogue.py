"""What environments there are, as documents: tasks, aliases, task sets, simulators. Imports no torch."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from flowmbpo.config.task import TaskConfig
from flowmbpo.envs.resolve import resolve
from flowmbpo.envs.simulators import SIMULATORS, SimulatorInfo
from flowmbpo.envs.task_sets import TASK_SETS
from flowmbpo.envs.tasks import ALIASES, task_info, task_names
from flowmbpo.errors import ConfigError, nearest
from flowmbpo.presets.library import is_file_path
from flowmbpo.spec import EnvSpec, TaskInfo
from flowmbpo_cli.sources import config_of

Document = dict[str, Any]


def environment_names() -> list[str]:
    """Every name that means an environment: tasks, aliases, task sets."""
    return [*task_names(), *TASK_SETS]


def complete_environment(incomplete: str) -> list[str]:
    """Shell completion: the names of tasks, aliases and task sets."""
    return [name for name in environment_names() if name.startswith(incomplete)]


def find_environment(name: str) -> TaskConfig:
    """The config that `name` means: a task, an alias, a task set, or the `task` of a YAML file.

    Raises ConfigError, with the nearest name, where there is none.
    """
    if name in TASK_SETS:
        return TaskConfig(name=None, set=name)
    if is_file_path(name):
        return config_of(name).task
    if name not in task_names():
        raise ConfigError(
            f"no task, alias or task set is called '{name}'.{nearest(name, environment_names())} "
            "`flowmbpo envs list` shows all; a file of your own ends in .yaml."
        )
    return TaskConfig(name=name)


def all_tasks() -> list[TaskInfo]:
    """The table of tasks without the aliases, in its order."""
    return [task_info(name) for name in task_names() if name not in ALIASES]


def missing_simulators(spec: EnvSpec) -> list[SimulatorInfo]:
    """The simulators that tasks of `spec` need and that are not installed."""
    needed = dict.fromkeys(task.simulator for task in spec.tasks)
    return [SIMULATORS[name] for name in needed if not SIMULATORS[name].installed]


def task_row(task: TaskInfo) -> Document:
    """One task in numbers, and whether it can run here."""
    return {**asdict(task), "runs_here": SIMULATORS[task.simulator].installed}


def simulator_row(simulator: SimulatorInfo) -> Document:
    """One simulator: what it is, under which licence, whether it is here or how to get it."""
    return {
        "name": simulator.name,
        "title": simulator.title,
        "licence": simulator.licence,
        "installed": simulator.installed,
        "install": simulator.install,
        "tasks": sum(task.simulator == simulator.name for task in all_tasks()),
    }


def alias_row(name: str) -> Document:
    """An alias: the task that it means here, and by which backend it can mean another."""
    known = task_names()
    backends = {backend: task for backend, task in ALIASES[name].items() if task in known}
    return {"name": name, "runs_as": task_info(name).name, "backends": backends}


def set_row(name: str) -> Document:
    """A task set in one line."""
    spec = resolve(find_environment(name)).spec
    here = sum(SIMULATORS[task.simulator].installed for task in spec.tasks)
    return {
        "name": name,
        "tasks": len(spec.tasks),
        "obs_dim": spec.obs_dim,
        "action_dim": spec.action_dim,
        "run_here": here,
        "simulators": sorted({task.simulator for task in spec.tasks}),
    }


def listing(simulator: str | None = None) -> Document:
    """All tasks (of one simulator), and with all simulators the aliases and the sets. Raises ConfigError."""
    if simulator is not None and simulator not in SIMULATORS:
        raise ConfigError(
            f"--simulator: none is called '{simulator}'.{nearest(simulator, SIMULATORS)} "
            f"Simulators: {', '.join(SIMULATORS)}."
        )
    chosen = [info for info in SIMULATORS.values() if simulator in (None, info.name)]
    tasks = [task_row(task) for task in all_tasks() if simulator in (None, task.simulator)]
    document: Document = {"simulators": [simulator_row(info) for info in chosen], "tasks": tasks}
    if simulator is None:
        document["aliases"] = [alias_row(name) for name in ALIASES]
        document["sets"] = [set_row(name) for name in TASK_SETS]
    return document


def description(name: str) -> Document:
    """All that is known of a task, an alias, a task set or a file's environment. Raises ConfigError."""
    config = find_environment(name)
    resolved = resolve(config)
    spec = resolved.spec
    document: Document = {"name": name, "kind": _kind(name, config), "runs_as": spec.label}
    if len(spec.tasks) == 1:
        document |= _task_description(spec.tasks[0])
    else:
        document |= {"tasks": len(spec.tasks), "obs_dim": spec.obs_dim, "action_dim": spec.action_dim}
    if name in ALIASES:
        document["backends"] = alias_row(name)["backends"]
    elif document["kind"] == "task":
        document["aliases"] = [alias for alias, backends in ALIASES.items() if name in backends.values()]
    if config.perturbation.suffix:
        document["perturbation"] = config.perturbation.model_dump()
    notices = resolved.notices
    if notices:
        document["notice"] = "\n".join(notices)
    missing = missing_simulators(spec)
    document["runs_here"] = not missing
    if missing:
        document["install"] = [info.install for info in missing]
        document["instead"] = sorted({task for info in missing for task in info.instead})
    if len(spec.tasks) > 1:
        document["members"] = [{"task_id": place, **task_row(task)} for place, task in enumerate(spec.tasks)]
    return document


def _kind(name: str, config: TaskConfig) -> str:
    if config.set is not None:
        return "task set"
    return "alias" if name in ALIASES else "task"


def _task_description(task: TaskInfo) -> Document:
    simulator = SIMULATORS[task.simulator]
    numbers = asdict(task)
    del numbers["name"]
    sets = {
        name: task_set.tasks.index(task.name) for name, task_set in TASK_SETS.items() if task.name in task_set.tasks
    }
    return {
        **numbers,
        "control_steps": task.episode_length * task.action_repeat,
        "physics": simulator.title,
        "licence": simulator.licence,
        "task_ids": sets,
    }
