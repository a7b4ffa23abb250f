"""What environments there are, as documents: tasks, aliases, task sets, simulators; and as tables for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import typer

from flowmbpo.envs.resolve import resolve
from flowmbpo.envs.simulators import SIMULATORS
from flowmbpo.envs.task_sets import TASK_SETS
from flowmbpo.envs.tasks import ALIASES, all_tasks, task_info
from flowmbpo.errors import ConfigError, nearest
from flowmbpo.spec import TaskInfo
from flowmbpo_cli.sources import find_environment
from flowmbpo_cli.tables import print_pairs, print_records, print_table

if TYPE_CHECKING:
    from flowmbpo.envs.inspection.conformance import CheckResult

Document = dict[str, Any]
_NUMBERS = {
    "obs_dim": "obs",
    "action_dim": "act",
    "episode_length": "steps",
    "action_repeat": "repeat",
    "discount": "discount",
    "can_terminate": "terminates",
}
_SETS = {"name": "name", "tasks": "tasks", "obs_dim": "obs", "action_dim": "act", "run_here": "tasks that run here"}


def task_row(task: TaskInfo) -> Document:
    """One task in numbers, and whether it can run here."""
    return {**asdict(task), "runs_here": SIMULATORS[task.simulator].installed}


def listing(simulator: str | None = None) -> Document:
    """All tasks (of one simulator), and with all simulators the aliases and the sets. Raises ConfigError."""
    if simulator is not None and simulator not in SIMULATORS:
        raise ConfigError(
            f"--simulator: none is called '{simulator}'.{nearest(simulator, SIMULATORS)} "
            f"Simulators: {', '.join(SIMULATORS)}."
        )
    shown = ("name", "title", "licence", "installed", "install")
    document: Document = {
        "simulators": [
            {**{key: getattr(info, key) for key in shown}, "tasks": len(all_tasks(name))}
            for name, info in SIMULATORS.items()
            if simulator in (None, name)
        ],
        "tasks": [task_row(task) for task in all_tasks(simulator)],
    }
    if simulator is None:
        document["aliases"] = [
            {"name": name, "runs_as": task_info(name).name, "backends": dict(backends)}
            for name, backends in ALIASES.items()
        ]
        document["sets"] = [
            {
                "name": spec.name,
                "tasks": len(spec.tasks),
                "obs_dim": spec.obs_dim,
                "action_dim": spec.action_dim,
                "run_here": sum(SIMULATORS[task.simulator].installed for task in spec.tasks),
                "simulators": sorted({task.simulator for task in spec.tasks}),
            }
            for spec in (resolve(find_environment(name)).spec for name in TASK_SETS)
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
        (task,) = spec.tasks
        document |= asdict(task) | {
            "name": name,
            "control_steps": task.episode_length * task.action_repeat,
            "physics": SIMULATORS[task.simulator].title,
            "licence": SIMULATORS[task.simulator].licence,
            "task_ids": {name: tasks.index(task.name) for name, tasks in TASK_SETS.items() if task.name in tasks},
        }
    else:
        document |= {"tasks": len(spec.tasks), "obs_dim": spec.obs_dim, "action_dim": spec.action_dim}
    if name in ALIASES:
        document["backends"] = dict(ALIASES[name])
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


def checks_row(label: str, results: Sequence[CheckResult], wall_s: float) -> Document:
    """What the checks of one environment found."""
    checks = [{key: value for key, value in asdict(result).items() if key != "environment"} for result in results]
    cpu_s = sum(result.cpu_s for result in results)
    return {"name": label, "ok": not _failed(checks), "wall_s": wall_s, "cpu_s": cpu_s, "checks": checks}


def _failed(checks: Sequence[Document]) -> list[Document]:
    return [check for check in checks if check["verdict"] == "failed"]


def show_listing(document: Document) -> None:
    """One table of tasks for each simulator, then aliases, sets, and what runs here."""
    for simulator in document["simulators"]:
        rows = [task for task in document["tasks"] if task["simulator"] == simulator["name"]]
        if rows:
            licence = f", {simulator['licence']}" if simulator["licence"] else ""
            here = "runs here" if simulator["installed"] else "NOT INSTALLED"
            title = f"{simulator['name']}: {simulator['title']}{licence} - {len(rows)} tasks, {here}"
            print_records(title, {"name": "name", **_NUMBERS}, rows)
    if "sets" in document:
        rows = []
        for alias in document["aliases"]:
            others = [f"{name}: {task}" for name, task in alias["backends"].items() if task != alias["runs_as"]]
            rows.append([alias["name"], alias["runs_as"], ", ".join(others)])
        print_table("aliases (task.backend: auto)", ["name", "means here", "other backends"], rows)
        print_records("task sets", _SETS, document["sets"])
    tasks = document["tasks"]
    here = sum(task["runs_here"] for task in tasks)
    typer.echo(f"{here} of {len(tasks)} tasks run here. Steps are agent steps, each of `repeat` control steps.")
    for simulator in document["simulators"]:
        if not simulator["installed"]:
            licence = f" ({simulator['licence']})" if simulator["licence"] else ""
            typer.echo(f"For {simulator['name']}{licence}: {simulator['install']}")


def show_description(document: Document) -> None:
    """One environment; a set's members as a table."""
    pairs = {
        key: ", ".join(f"{name}: {item}" for name, item in value.items()) if isinstance(value, Mapping) else value
        for key, value in document.items()
        if key not in ("name", "members") and value not in ("", [], {})
    }
    print_pairs(document["name"], pairs)
    if "members" in document:
        columns = {"task_id": "id", "name": "name", "simulator": "simulator", **_NUMBERS, "runs_here": "runs here"}
        print_records("tasks", columns, document["members"])


def show_checks(document: Document) -> None:
    """Every check of a single environment; of several, one line each and then what failed."""
    checked, left_out = document["environments"], document["left_out"]
    if len(checked) == 1:
        columns = {"name": "check", "verdict": "verdict", "detail": "seen", "cpu_s": "cpu s"}
        print_records(checked[0]["name"], columns, checked[0]["checks"])
    elif checked:
        rows = []
        for env in checked:
            verdicts = [check["verdict"] for check in env["checks"]]
            counts = [verdicts.count(verdict) for verdict in ("passed", "failed", "skipped")]
            rows.append([env["name"], *counts, env["wall_s"], env["cpu_s"]])
        print_table("environments", ["name", "passed", "failed", "skipped", "wall s", "cpu s"], rows)
        rows = [[env["name"], check["name"], check["detail"]] for env in checked for check in _failed(env["checks"])]
        if rows:
            print_table("failed", ["name", "check", "seen"], rows)
    if left_out:
        print_records("not checked", {"name": "name", "reason": "why"}, left_out)
    if not checked:
        typer.echo(f"Nothing was checked: none of {len(left_out)} environments runs here.")
        return
    kept = f"{sum(env['ok'] for env in checked)} of {len(checked)} environments keep the contract"
    typer.echo(f"{kept}; {len(left_out)} were not checked.")
