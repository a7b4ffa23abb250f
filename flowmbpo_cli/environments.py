"""What environments there are, as documents: tasks, aliases, task sets, simulators; and as tables for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from rich.console import Console

from flowmbpo.config.task import TaskConfig
from flowmbpo.envs.resolve import resolve
from flowmbpo.envs.simulators import SIMULATORS
from flowmbpo.envs.task_sets import TASK_SETS
from flowmbpo.envs.tasks import ALIASES, all_tasks, task_info, task_names
from flowmbpo.errors import ConfigError, nearest
from flowmbpo.presets.library import is_file_path
from flowmbpo.spec import TaskInfo
from flowmbpo_cli.sources import config_of
from flowmbpo_cli.tables import print_pairs, print_table

if TYPE_CHECKING:
    from flowmbpo.envs.inspection.conformance import CheckResult

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


def task_row(task: TaskInfo) -> Document:
    """One task in numbers, and whether it can run here."""
    return {**asdict(task), "runs_here": SIMULATORS[task.simulator].installed}


def alias_row(name: str) -> Document:
    """An alias: the task that it means here, and by which backend it can mean another."""
    return {"name": name, "runs_as": task_info(name).name, "backends": dict(ALIASES[name])}


def listing(simulator: str | None = None) -> Document:
    """All tasks (of one simulator), and with all simulators the aliases and the sets. Raises ConfigError."""
    if simulator is not None and simulator not in SIMULATORS:
        raise ConfigError(
            f"--simulator: none is called '{simulator}'.{nearest(simulator, SIMULATORS)} "
            f"Simulators: {', '.join(SIMULATORS)}."
        )
    tasks = {name: all_tasks(name) for name in SIMULATORS if simulator in (None, name)}
    document: Document = {
        "simulators": [
            {
                "name": name,
                "title": SIMULATORS[name].title,
                "licence": SIMULATORS[name].licence,
                "installed": SIMULATORS[name].installed,
                "install": SIMULATORS[name].install,
                "tasks": len(rows),
            }
            for name, rows in tasks.items()
        ],
        "tasks": [task_row(task) for task in all_tasks(simulator)],
    }
    if simulator is None:
        document["aliases"] = [alias_row(name) for name in ALIASES]
        sets = {name: resolve(find_environment(name)).spec for name in TASK_SETS}
        document["sets"] = [
            {
                "name": name,
                "tasks": len(spec.tasks),
                "obs_dim": spec.obs_dim,
                "action_dim": spec.action_dim,
                "run_here": sum(SIMULATORS[task.simulator].installed for task in spec.tasks),
                "simulators": sorted({task.simulator for task in spec.tasks}),
            }
            for name, spec in sets.items()
        ]
    return document


def description(name: str) -> Document:
    """All that is known of a task, an alias, a task set or a file's environment. Raises ConfigError."""
    config = find_environment(name)
    resolved = resolve(config)
    spec = resolved.spec
    kind = "task set" if config.set is not None else "alias" if name in ALIASES else "task"
    document: Document = {"name": name, "kind": kind, "runs_as": spec.label}
    if len(spec.tasks) == 1:
        document |= _task_description(spec.tasks[0])
    else:
        document |= {"tasks": len(spec.tasks), "obs_dim": spec.obs_dim, "action_dim": spec.action_dim}
    if name in ALIASES:
        document["backends"] = alias_row(name)["backends"]
    elif kind == "task":
        document["aliases"] = [alias for alias, backends in ALIASES.items() if name in backends.values()]
    if config.perturbation.suffix:
        document["perturbation"] = config.perturbation.model_dump()
    if resolved.notices:
        document["notice"] = "\n".join(resolved.notices)
    needed = [SIMULATORS[name] for name in dict.fromkeys(task.simulator for task in spec.tasks)]
    missing = [simulator for simulator in needed if not simulator.installed]
    document["runs_here"] = not missing
    if missing:
        document["install"] = [info.install for info in missing]
        document["instead"] = sorted({task for info in missing for task in info.instead})
    if len(spec.tasks) > 1:
        document["members"] = [{"task_id": place, **task_row(task)} for place, task in enumerate(spec.tasks)]
    return document


def _task_description(task: TaskInfo) -> Document:
    numbers = asdict(task)
    del numbers["name"]
    return {
        **numbers,
        "control_steps": task.episode_length * task.action_repeat,
        "physics": SIMULATORS[task.simulator].title,
        "licence": SIMULATORS[task.simulator].licence,
        "task_ids": {name: tasks.index(task.name) for name, tasks in TASK_SETS.items() if task.name in tasks},
    }


_COLUMNS = {
    "obs_dim": "obs",
    "action_dim": "act",
    "episode_length": "steps",
    "action_repeat": "repeat",
    "discount": "discount",
    "can_terminate": "terminates",
}


def checks_row(label: str, results: Sequence[CheckResult], wall_s: float) -> Document:
    """What the checks of one environment found."""
    checks = [asdict(result) for result in results]
    for check in checks:
        del check["environment"]  # it stands once, above them
    cpu_s = sum(result.cpu_s for result in results)
    return {"name": label, "ok": not _failed(checks), "wall_s": wall_s, "cpu_s": cpu_s, "checks": checks}


def checks_line(row: Document) -> str:
    """The same in one line."""
    failed = ", ".join(check["name"] for check in _failed(row["checks"]))
    return f"{f'FAILED: {failed}' if failed else 'passed'} ({row['cpu_s']:.1f} CPU-s)"


def _failed(checks: Sequence[Document]) -> list[Document]:
    return [check for check in checks if check["verdict"] == "failed"]


def print_listing(console: Console, document: Mapping[str, Any]) -> None:
    """One table of tasks for each simulator, then aliases, sets, and what runs here."""
    for simulator in document["simulators"]:
        rows = [task for task in document["tasks"] if task["simulator"] == simulator["name"]]
        if rows:
            print_table(
                console,
                _title(simulator, len(rows)),
                ["name", *_COLUMNS.values()],
                [[row["name"], *(row[key] for key in _COLUMNS)] for row in rows],
            )
    if "sets" in document:
        columns = ["name", "means here", "other backends"]
        rows = [[row["name"], row["runs_as"], _others(row)] for row in document["aliases"]]
        print_table(console, "aliases (task.backend: auto)", columns, rows)
        columns = ["name", "tasks", "obs", "act", "tasks that run here"]
        keys = ("name", "tasks", "obs_dim", "action_dim", "run_here")
        print_table(console, "task sets", columns, [[row[key] for key in keys] for row in document["sets"]])
    tasks = document["tasks"]
    here = sum(task["runs_here"] for task in tasks)
    console.print(f"{here} of {len(tasks)} tasks run here. Steps are agent steps, each of `repeat` control steps.")
    for simulator in document["simulators"]:
        if not simulator["installed"]:
            licence = f" ({simulator['licence']})" if simulator["licence"] else ""
            console.print(f"For {simulator['name']}{licence}: {simulator['install']}", markup=False, soft_wrap=True)


def print_description(console: Console, document: Mapping[str, Any]) -> None:
    """One environment; a set's members as a table."""
    members: Sequence[Mapping[str, Any]] = document.get("members", ())
    pairs = {
        key: ", ".join(f"{name}: {item}" for name, item in value.items()) if isinstance(value, Mapping) else value
        for key, value in document.items()
        if key not in ("name", "members") and value not in ("", [], {})
    }
    print_pairs(console, document["name"], pairs)
    if members:
        keys = ("task_id", "name", "simulator", *_COLUMNS, "runs_here")
        columns = ["id", "name", "simulator", *_COLUMNS.values(), "runs here"]
        print_table(console, "tasks", columns, [[row[key] for key in keys] for row in members])


def print_checks(
    console: Console, inspected: Sequence[Mapping[str, Any]], left_out: Sequence[Mapping[str, Any]]
) -> None:
    """Every check of a single environment; of several, one line each and then what failed."""
    if len(inspected) == 1:
        rows = [[check["name"], check["verdict"], check["detail"], check["cpu_s"]] for check in inspected[0]["checks"]]
        print_table(console, inspected[0]["name"], ["check", "verdict", "seen", "cpu s"], rows)
    elif inspected:
        rows = []
        for env in inspected:
            verdicts = [check["verdict"] for check in env["checks"]]
            counts = [verdicts.count(verdict) for verdict in ("passed", "failed", "skipped")]
            rows.append([env["name"], *counts, env["wall_s"], env["cpu_s"]])
        print_table(console, "environments", ["name", "passed", "failed", "skipped", "wall s", "cpu s"], rows)
        rows = [[env["name"], check["name"], check["detail"]] for env in inspected for check in _failed(env["checks"])]
        if rows:
            print_table(console, "failed", ["name", "check", "seen"], rows)
    if left_out:
        print_table(console, "not checked", ["name", "why"], [[env["name"], env["reason"]] for env in left_out])
    if not inspected:
        console.print(f"Nothing was checked: none of {len(left_out)} environments runs here.", markup=False)
        return
    kept = f"{sum(env['ok'] for env in inspected)} of {len(inspected)} environments keep the contract"
    console.print(f"{kept}; {len(left_out)} were not checked.", markup=False)


def _title(simulator: Mapping[str, Any], count: int) -> str:
    licence = f", {simulator['licence']}" if simulator["licence"] else ""
    here = "runs here" if simulator["installed"] else "NOT INSTALLED"
    return f"{simulator['name']}: {simulator['title']}{licence} - {count} tasks, {here}"


def _others(alias: Mapping[str, Any]) -> str:
    others = {backend: task for backend, task in alias["backends"].items() if task != alias["runs_as"]}
    return ", ".join(f"{backend}: {task}" for backend, task in others.items())
