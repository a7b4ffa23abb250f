"""MMBench's demonstrations: one <task>.pt each, a flat TensorDict of episodes one after the other (Newt).

Keys `obs` [R, 128], `action` [R, 16], `reward`, `value`, `terminated`, `episode` [R], and sometimes `feat`. A demo of
L transitions takes L + 1 rows with the same `episode`; the widths are nominal, a task's own columns come first.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from flowmbpo.data.convert.source import Index, Source, known_task
from flowmbpo.data.dataset.format import TaskRecord
from flowmbpo.data.foreign import Archive, open_archive
from flowmbpo.errors import DataError

_COLUMNS = ("obs", "action", "reward", "episode", "terminated")


class MMBenchSource(Source):
    """Demonstrations of the tasks `names`, one file each; a task's id is its place among them.

    A task that this project knows has the widths of its table; those of another are read off the data: the last
    column that is not 0 everywhere. Raises DataError.
    """

    format: ClassVar[str] = "mmbench"
    flat: ClassVar[bool] = True

    def __init__(self, set_name: str, names: Sequence[str], files: Sequence[Path]) -> None:
        tasks = [known_task(name) or _columns_of(name, path) for name, path in zip(names, files, strict=True)]
        super().__init__(set_name, tasks, files)

    def index(self, archive: Archive, number: int) -> Index:
        starts = _starts(archive)
        return Index(np.full(len(starts) - 1, number), starts[:-1], np.diff(starts))


def _starts(archive: Archive) -> NDArray[np.int64]:
    """The first row of every episode, and the number of rows behind the last. Raises DataError."""
    archive.need("obs", "action", "reward", "episode")
    shapes = {name: archive.tensors[name].shape for name in _COLUMNS if name in archive.tensors}
    rows = archive.tensors["episode"].numel()
    for name, shape in shapes.items():
        wide = name in ("obs", "action")
        if shape[:1] != (rows,) or (len(shape) != 2 if wide else shape not in ((rows,), (rows, 1))):
            raise DataError(
                f"{archive.path}: {name} has the shape {list(shape)}, which is not {'[R, columns]' if wide else '[R]'} "
                f"for the {rows} rows of 'episode'."
            )
    ids = archive.column("episode").reshape(-1)
    if not len(ids):
        raise DataError(f"{archive.path}: holds no rows.")
    starts = np.concatenate(([0], np.flatnonzero(np.diff(ids)) + 1, [len(ids)])).astype(np.int64)
    first = ids[starts[:-1]]
    unique, counts = np.unique(first, return_counts=True)
    if (counts > 1).any():
        raise DataError(
            f"{archive.path}: episode {int(unique[counts.argmax()])} occurs in more than one place; rows of an "
            "episode must lie together."
        )
    if (np.diff(starts) < 2).any():
        row = int(starts[int(np.diff(starts).argmin())])
        raise DataError(f"{archive.path}, row {row}: an episode of a single row holds no transition.")
    return starts


def _columns_of(name: str, path: Path) -> TaskRecord:
    archive = open_archive(path)
    starts = _starts(archive)
    widths = []
    for key in ("obs", "action"):
        values = archive.floats(key, 0, int(starts[-1]))
        if key == "action":
            values[starts[:-1]] = 0.0  # an episode's first action was never taken
        widths.append(1 + int(np.flatnonzero(values.any(axis=0)).max(initial=0)))
    try:
        return TaskRecord(name=name, obs_dim=widths[0], action_dim=widths[1])
    except ValidationError as error:
        raise DataError(f"{path}: a task cannot be stored: {error}") from error
