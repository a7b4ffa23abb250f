"""What a conversion needs to know of a published format."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

from flowmbpo.data.convert.episodes import Portion, TaskColumns
from flowmbpo.data.convert.selection import Selection
from flowmbpo.data.foreign import Archive, open_archive
from flowmbpo.errors import DataError, nearest

PORTION_BYTES = 32 << 20
"""So much of a file is read at once; a conversion holds a few copies of it."""


class Source(ABC):
    """Published files of one format: their tasks in id order, and their episodes in the order of the files."""

    format: ClassVar[str]

    def __init__(self, set_name: str, tasks: Sequence[TaskColumns], files: Sequence[Path]) -> None:
        self.set_name = set_name
        self.tasks = tuple(tasks)
        self.files = tuple(files)

    def open(self, number: int) -> Archive:
        """File `number`, its checksums verified. Raises DataError."""
        return open_archive(self.files[number], checksums=True)

    def done(self, number: int) -> None:  # noqa: B027  files stay where they are
        """File `number` has been converted."""

    def options(self) -> dict[str, Any]:
        """What was asked for and changes the result, for the dataset's record."""
        return {}

    @abstractmethod
    def count(self, number: int) -> list[int]:
        """Episodes of each task in file `number`."""

    @abstractmethod
    def portions(self, archive: Archive, number: int, start: int, selection: Selection) -> Iterator[Portion]:
        """The episodes of file `number` from its row `start` on, in order. Raises DataError."""


def refuse_empty(archive: Archive) -> None:
    """Raises DataError where `obs` [E, ...] holds no episodes: as a source of nothing it would pass for complete."""
    shape = archive.tensors["obs"].shape
    if shape[:1] == (0,):
        raise DataError(
            f"{archive.path}: holds no episodes (obs is {list(shape)}). Fetch it again, or take it away to convert "
            "the rest."
        )


def known_columns(name: str) -> TaskColumns | None:
    """The task's own widths where it is one of the table's; published names that differ are translated."""
    from flowmbpo.envs.tasks import task_info, task_names

    for candidate in (name, f"{name}s"):  # MMBench says 'walker-walk-backward'
        if candidate in task_names():
            info = task_info(candidate)
            return TaskColumns(info.name, info.obs_dim, info.action_dim)
    return None


def set_columns(set_name: str) -> tuple[TaskColumns, ...]:
    """The tasks of a shipped set. Raises DataError for another name."""
    from flowmbpo.envs.task_sets import TASK_SETS
    from flowmbpo.envs.tasks import task_info

    if set_name not in TASK_SETS:
        raise DataError(
            f"--set: no task set is called '{set_name}'.{nearest(set_name, TASK_SETS)} "
            f"Task sets: {', '.join(TASK_SETS)}."
        )
    infos = [task_info(name) for name in TASK_SETS[set_name].tasks]
    return tuple(TaskColumns(info.name, info.obs_dim, info.action_dim) for info in infos)
