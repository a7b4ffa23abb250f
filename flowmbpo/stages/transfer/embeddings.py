"""Which task of the source each task of the target starts from."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import Literal

from jaxtyping import Float
from torch import Tensor

from flowmbpo.errors import ConfigError, nearest
from flowmbpo.spec import EnvSpec, TaskInfo
from flowmbpo.stages.transfer.layout import TakenTensor

TABLE = "world_model.tasks.embeddings"  # in an agent's state dict


@dataclass(frozen=True)
class TaskStart:
    """`task` starts from the source's task `source`: itself (`known`), the one asked for, or the nearest."""

    task: str
    source: str
    row: int
    how: Literal["known", "named", "nearest"]


def match_tasks(target: EnvSpec, source: EnvSpec, embedding_from: str | None) -> tuple[TaskStart, ...]:
    """A start for every task of `target`, in its order.

    Tasks are compared by plain name. One that the source never saw starts from `embedding_from`, or from the
    nearest: a task of the same body or domain (the name up to its first '-') before any other, then one of the same
    widths, then the most similar name, then the lowest id. Raises ConfigError for an unknown `embedding_from`.
    """
    rows: dict[str, int] = {}
    for row, task in enumerate(source.tasks):
        rows.setdefault(task.plain_name, row)
    if embedding_from is not None and embedding_from not in rows:
        raise ConfigError(
            f"initial.embedding_from: the checkpoint knows no task '{embedding_from}'.{nearest(embedding_from, rows)}"
            f" Its tasks: {', '.join(rows)}."
        )
    starts = []
    for task in target.tasks:
        name = task.plain_name
        if name in rows:
            starts.append(TaskStart(name, name, rows[name], "known"))
        elif embedding_from is not None:
            starts.append(TaskStart(name, embedding_from, rows[embedding_from], "named"))
        else:
            nearest_row = max(rows.values(), key=lambda row: (*_nearness(task, source.tasks[row]), -row))
            starts.append(TaskStart(name, source.tasks[nearest_row].plain_name, nearest_row, "nearest"))
    return tuple(starts)


def _nearness(task: TaskInfo, other: TaskInfo) -> tuple[bool, bool, float]:
    name, known = task.plain_name, other.plain_name
    same_body = name.partition("-")[0] == known.partition("-")[0]
    same_widths = (task.obs_dim, task.action_dim) == (other.obs_dim, other.action_dim)
    return same_body, same_widths, difflib.SequenceMatcher(None, name, known, autojunk=False).ratio()


def take_embeddings(
    table: Float[Tensor, "M E"], fresh: Float[Tensor, "N F"], starts: tuple[TaskStart, ...], *, folded: bool
) -> TakenTensor:
    """The target's embedding table; columns that the source lacks are as initialised.

    `folded`: the target has no columns, and what the one task's row does is in the biases.
    """
    width, room = table.shape[1], fresh.shape[1]
    if folded:
        return TakenTensor(fresh, "adapted", f"the row of {starts[0].source} folded into the biases")
    if room and not width:
        return TakenTensor(fresh, "reinitialised", "the source has no task embedding; it is read by columns of zeros")
    shared, rows = min(width, room), [start.row for start in starts]
    taken = fresh.clone()
    taken[:, :shared] = table[rows, :shared].to(fresh)
    said = []
    if rows != list(range(len(table))) and room:
        known = sum(start.how == "known" for start in starts)
        new = f", {len(starts) - known} as the nearest or the named task's" if known < len(starts) else ""
        said.append(f"{known} of {len(table)} rows by name{new}")
    if width != room:
        said.append(f"{width} -> {room} columns")
    return TakenTensor(taken, "adapted" if said else "loaded", "; ".join(said), len(starts) * shared)
