"""Environments as tables for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console

from flowmbpo_cli.tables import print_pairs, print_table

_COLUMNS = {
    "obs_dim": "obs",
    "action_dim": "act",
    "episode_length": "steps",
    "action_repeat": "repeat",
    "discount": "discount",
    "can_terminate": "terminates",
}


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
    _print_summary(console, document)


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
        rows = [[env["name"], *_counts(env), env["wall_s"], env["cpu_s"]] for env in inspected]
        columns = ["name", "passed", "failed", "skipped", "wall s", "cpu s"]
        print_table(console, "environments", columns, rows)
        failed = [
            [env["name"], check["name"], check["detail"]]
            for env in inspected
            for check in env["checks"]
            if check["verdict"] == "failed"
        ]
        if failed:
            print_table(console, "failed", ["name", "check", "seen"], failed)
    if left_out:
        print_table(console, "not checked", ["name", "why"], [[env["name"], env["reason"]] for env in left_out])
    if not inspected:
        console.print(f"Nothing was checked: none of {len(left_out)} environments runs here.", markup=False)
        return
    broken = sum(not env["ok"] for env in inspected)
    kept = f"{len(inspected) - broken} of {len(inspected)} environments keep the contract"
    console.print(f"{kept}; {len(left_out)} were not checked.", markup=False)


def _title(simulator: Mapping[str, Any], count: int) -> str:
    licence = f", {simulator['licence']}" if simulator["licence"] else ""
    here = "runs here" if simulator["installed"] else "NOT INSTALLED"
    return f"{simulator['name']}: {simulator['title']}{licence} - {count} tasks, {here}"


def _others(alias: Mapping[str, Any]) -> str:
    others = {backend: task for backend, task in alias["backends"].items() if task != alias["runs_as"]}
    return ", ".join(f"{backend}: {task}" for backend, task in others.items())


def _counts(environment: Mapping[str, Any]) -> list[int]:
    verdicts = [check["verdict"] for check in environment["checks"]]
    return [verdicts.count(verdict) for verdict in ("passed", "failed", "skipped")]


def _print_summary(console: Console, document: Mapping[str, Any]) -> None:
    tasks = document["tasks"]
    here = sum(task["runs_here"] for task in tasks)
    console.print(f"{here} of {len(tasks)} tasks run here. Steps are agent steps, each of `repeat` control steps.")
    for simulator in document["simulators"]:
        if not simulator["installed"]:
            licence = f" ({simulator['licence']})" if simulator["licence"] else ""
            console.print(f"For {simulator['name']}{licence}: {simulator['install']}", markup=False, soft_wrap=True)
