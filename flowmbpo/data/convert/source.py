"""What the published formats have in common: whole episodes, read in chunks, checked and realigned.

Published files (TD-MPC2, MMBench, PWM) keep with an observation the action and the reward that LED to it; a dataset
here, like the replay buffer, keeps with it those that LEAVE it (docs/data.md draws both). So index 0 of action and
reward is left out by its place, whatever it holds, the others move up by a row, and everything must be finite.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Float, Int
from numpy.typing import NDArray

from flowmbpo.data.dataset.format import TaskRecord, first_place
from flowmbpo.data.foreign import Archive, open_archive
from flowmbpo.envs.task_sets import task_set
from flowmbpo.envs.tasks import task_info, task_names
from flowmbpo.errors import DataError
from flowmbpo.spec import TaskInfo

CHUNK_BYTES = 32 << 20
"""So much of a file is read at once; a conversion holds a few copies of it."""

Rows = Float[NDArray[np.float32], "E L+1 W"]
IntArray = NDArray[np.int64]


@dataclass(frozen=True)
class Index:
    """The E episodes of a file: their tasks, and where they lie in the tensors' first dimension."""

    task: Int[NDArray[np.int64], " E"]
    first: Int[NDArray[np.int64], " E"]
    rows: Int[NDArray[np.int64], " E"]  # L + 1


Block = tuple[int, IntArray, dict[str, NDArray[Any]]]
"""Whole episodes of one task and length, aligned as a dataset keeps them: the task, their numbers in the file [E], and
`obs` [E, L+1, O], `action` [E, L, A], `reward` [E, L] and, where the file has it, `terminated` [E, L]."""


class Source(ABC):
    """Published files of one format: their tasks in id order, and their episodes in the order of the files.

    A file's tensors are [E, L + 1, ...], or [R, ...] with the rows of its episodes one after the other where `flat`.
    """

    format: ClassVar[str]
    flat: ClassVar[bool] = False

    drop_padding = False
    """Whether columns beyond a task's own are cut off whatever they hold."""
    squashed = False
    """Whether the environment took the tanh of stored actions."""

    def __init__(self, set_name: str, tasks: Sequence[TaskInfo | TaskRecord], files: Sequence[Path]) -> None:
        self.set_name, self.tasks, self.files = set_name, tuple(tasks), tuple(files)

    def open(self, number: int) -> Archive:
        """File `number`, its checksums verified. Raises DataError."""
        return open_archive(self.files[number], checksums=True)

    def options(self) -> dict[str, Any]:
        """What was asked for and changes the result, for the dataset's record."""
        return {"drop_padding": True} if self.drop_padding else {}

    @abstractmethod
    def index(self, archive: Archive, number: int) -> Index:
        """The episodes of file `number`. Raises DataError where it is not of this format."""

    def chunks(self, archive: Archive, index: Index) -> Iterator[tuple[int, int]]:
        """Episodes `begin` to before `end`, all of one length, that are read at once."""
        begin = 0
        width = archive.tensors["obs"].shape[-1] + archive.tensors["action"].shape[-1] + 1
        while begin < len(index.rows):
            rows = int(index.rows[begin])
            same = int((np.append(index.rows[begin:], -1) != rows).argmax())
            end = begin + min(same, max(1, CHUNK_BYTES // (4 * rows * width)))
            yield begin, end
            begin = end

    def read(self, archive: Archive, index: Index, begin: int, end: int, wanted: NDArray[np.bool_]) -> Iterator[Block]:
        """Those of the episodes `begin` to before `end` that are `wanted`, a task at a time.

        Index 0 is left out, padding cut off, all numbers checked. Raises DataError where the padding is not zero
        (unless it is to be dropped) or a number is not finite.
        """
        if not wanted.any():
            return
        shape = (end - begin, int(index.rows[begin]))
        span = (begin, end) if not self.flat else (int(index.first[begin]), int(index.first[end - 1]) + shape[1])
        names = ["obs", "action", "reward"] + (["terminated"] if self.flat and "terminated" in archive.tensors else [])
        fields = {name: archive.floats(name, *span).reshape(*shape, -1) for name in names}
        if self.squashed:
            fields["action"] = np.tanh(fields["action"])
        tasks = index.task[begin:end]
        for task in np.unique(tasks[wanted]).tolist():
            own = np.flatnonzero(wanted & (tasks == task))
            first = index.first[begin + own]
            columns = {name: self._own_columns(name, fields[name][own], task, archive, first) for name in fields}
            yield task, begin + own, columns

    def _own_columns(self, name: str, rows: Rows, task: int, archive: Archive, first: IntArray) -> NDArray[Any]:
        """The task's own columns of a field, without index 0 where that is left out; `first` [E] as in `Index`."""
        record = self.tasks[task]
        width = {"obs": record.obs_dim, "action": record.action_dim}.get(name, 1)
        shift = 0 if name == "obs" else 1
        rows = rows[:, shift:]

        def refuse(wrong: NDArray[Any], what: str) -> None:
            """Raises DataError for the first wrong one [E, L, W]; steps of flat rows are counted into the row."""
            place = first_place(wrong)
            if place:
                row, step, column = int(first[place[0]]), place[1] + shift, place[2]
                where = f"row {row + step}" if self.flat else f"row {row}, step {step}"
                text = what.format(column=column, value=rows[place])
                raise DataError(f"{archive.path}, {where}: {text}")

        if name == "terminated":
            refuse(~np.isin(rows, (0.0, 1.0)), "terminated is {value:g}, which is neither 0 nor 1.")
            ended: NDArray[np.bool_] = rows[..., 0] != 0
            return ended
        if rows.shape[2] < width:
            raise DataError(
                f"{archive.path}: wrong widths: {name} has {rows.shape[2]} columns, but "
                f"{record.name} has {width} of its own. Is this the data of another set?"
            )
        if not self.drop_padding:
            refuse(
                np.where(np.arange(rows.shape[2]) < width, 0, rows),
                f"wrong widths: {record.name} has {width} columns of {name}, but column {{column}} holds {{value:g}} "
                "where padding must be 0. Is this the data of another set? --drop-padding cuts them off unseen.",
            )
        own = np.ascontiguousarray(rows[..., :width])
        refuse(
            ~np.isfinite(own),
            f"{name}{'' if name == 'reward' else '[{column}]'} is {{value:g}}. Only the action and the reward of "
            "an episode's first row may be NaN: the file is damaged, or of another alignment.",
        )
        return own[..., 0] if name == "reward" else own


def spread(tasks: Int[NDArray[np.int64], " E"], limit: int) -> NDArray[np.bool_]:
    """Which of the episodes, whose tasks are given, are among `limit` of each task spread evenly over all.

    Published sets are replay buffers in the order of training: the first N of a task would be its worst. Occurrence k
    of T is kept where floor((k + 1) N / T) > floor(k N / T).
    """
    kept = np.ones(len(tasks), dtype=np.bool_)
    for task in np.unique(tasks).tolist():
        places = np.flatnonzero(tasks == task)
        if len(places) > limit:
            kept[places] = np.diff(np.arange(len(places) + 1) * limit // len(places)) > 0
    return kept


def refuse_empty(archive: Archive) -> None:
    """Raises DataError where `obs` [E, ...] holds no episodes: as a source of nothing it would pass for complete."""
    shape = archive.tensors["obs"].shape
    if shape[:1] == (0,):
        raise DataError(
            f"{archive.path}: holds no episodes (obs is {list(shape)}). Fetch it again, or take it away to convert "
            "the rest."
        )


def known_task(name: str) -> TaskInfo | None:
    """The task of the table with this name; published names that differ are translated."""
    for candidate in (name, f"{name}s"):  # MMBench says 'walker-walk-backward'
        if candidate in task_names():
            return task_info(candidate)
    return None


def set_tasks(set_name: str) -> list[TaskInfo]:
    """The tasks of a shipped set. Raises ConfigError for another name."""
    return [task_info(name) for name in task_set(set_name, key="--set")]
