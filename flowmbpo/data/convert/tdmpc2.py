"""TD-MPC2's MT30 and MT80: a folder of chunk_*.pt, each a TensorDict of whole episodes (Hansen et al. 2024).

| | MT30 | MT80 |
|---|---|---|
| batch shape | [E, 501] | [E, 101] |
| obs, action | [E, 501, 24], [E, 501, 6] | [E, 101, 39], [E, 101, 6] |
| reward, task | [E, 501] | [E, 101] |

There is no `terminated`: these tasks end by time alone.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray

from flowmbpo.data.convert.source import Index, Source, refuse_empty, set_tasks
from flowmbpo.data.foreign import Archive, open_archive
from flowmbpo.errors import DataError

log = logging.getLogger("flowmbpo")

CHUNK = re.compile(r"chunk_(\d+)\.pt")


class Layout(NamedTuple):
    """A published set's shapes: rows of an episode, columns, and how many files there are in all."""

    rows: int
    obs_dim: int
    action_dim: int
    chunks: int


LAYOUTS = {"mt30": Layout(501, 24, 6, 4), "mt80": Layout(101, 39, 6, 20)}


def chunk_files(folder: Path) -> list[Path]:
    """The chunks in `folder`, by number."""
    found = [path for path in folder.glob("chunk_*.pt") if CHUNK.fullmatch(path.name)]
    return sorted(found, key=_number)


def _number(chunk: Path) -> int:
    return int(chunk.stem.removeprefix("chunk_"))


class TDMPC2Source(Source):
    """The chunks of one set.

    Raises DataError on shapes of neither set, on chunks of both sets in one folder, or of another set than asked for.
    """

    format: ClassVar[str] = "tdmpc2"

    def __init__(self, files: Sequence[Path], set_name: str | None = None) -> None:
        found = _layout_of(open_archive(files[0]), set_name)
        super().__init__(found, set_tasks(found), files)
        expected = LAYOUTS[found].chunks
        missing = sorted(set(range(expected)) - set(map(_number, files)))
        if missing:
            log.warning(
                "%s: %d of the %d published chunks of %s are here; missing: %s. The rest is converted.",
                *(files[0].parent, expected - len(missing), expected, self.set_name),
                ", ".join(f"chunk_{number}.pt" for number in missing),
            )

    def index(self, archive: Archive, number: int) -> Index:
        found = _layout_of(archive, None)
        if found != self.set_name:
            raise DataError(
                f"{archive.path}: is a chunk of {found}, but {self.files[0].name} beside it is one of {self.set_name}. "
                "Keep every set in a folder of its own and name that."
            )
        episodes = archive.tensors["obs"].shape[0]
        first = archive.column("task").reshape(episodes, -1)[:, :1]
        task = first[:, 0].astype(np.int64)
        unknown = (task < 0) | (task >= len(self.tasks)) | (task != first[:, 0])
        self._refuse(archive, 0, first, unknown, "its task id is unknown")
        return Index(task, np.arange(episodes), np.full(episodes, LAYOUTS[self.set_name].rows))

    def check_chunk(self, archive: Archive, begin: int, end: int) -> None:
        task = archive.column("task")[begin:end].reshape(end - begin, -1)
        self._refuse(archive, begin, task, (task != task[:, :1]).any(axis=1), "its task changes within the episode")

    def _refuse(self, archive: Archive, begin: int, task: NDArray[Any], bad: NDArray[np.bool_], what: str) -> None:
        """Raises DataError for the first bad one of the episodes from `begin` on, whose task ids are given."""
        if bad.any():
            row = int(bad.argmax())
            ids = ", ".join(map(str, np.unique(task[row])[:4].tolist()))
            raise DataError(
                f"{archive.path}, row {begin + row}: {what} ({ids}); {self.set_name} has the ids 0 to "
                f"{len(self.tasks) - 1}. The file is damaged or of another set."
            )


def _layout_of(archive: Archive, wanted: str | None) -> str:
    """The set whose shapes a chunk has. Raises DataError."""
    archive.need("obs", "action", "reward", "task")
    shapes = {name: tuple(archive.tensors[name].shape) for name in ("obs", "action", "reward", "task")}
    for name, layout in LAYOUTS.items():
        rows = (*shapes["obs"][:1], layout.rows)
        wide = shapes["obs"] == (*rows, layout.obs_dim) and shapes["action"] == (*rows, layout.action_dim)
        if wide and all(shapes[key] in (rows, (*rows, 1)) for key in ("reward", "task")):
            if wanted not in (None, name):
                raise DataError(f"{archive.path}: is a chunk of {name}, not of {wanted} as --set says.")
            refuse_empty(archive)
            return name
    found = ", ".join(f"{name} {list(shape)}" for name, shape in shapes.items())
    known = "; ".join(
        f"{name}: obs [E, {known.rows}, {known.obs_dim}], action [E, {known.rows}, {known.action_dim}]"
        for name, known in LAYOUTS.items()
    )
    raise DataError(f"{archive.path}: wrong widths: {found} are the shapes of no published set ({known}).")
