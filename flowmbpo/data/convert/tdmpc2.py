"""TD-MPC2's MT30 and MT80: a folder of chunk_*.pt, each a TensorDict of whole episodes (Hansen et al. 2024).

`obs` [E, 501, 24] or [E, 101, 39], `action` [E, rows, 6], `reward` and `task` [E, rows]; there is no `terminated`, for
these tasks end by time alone.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, NamedTuple

import numpy as np

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
        ids = archive.column("task").reshape(episodes, -1)
        task = ids[:, 0].astype(np.int64)
        unknown = (task < 0) | (task >= len(self.tasks)) | (task != ids[:, 0])
        changes = ids.min(axis=1) != ids.max(axis=1)
        for bad, what in ((unknown, "its task id is unknown"), (changes, "its task changes within the episode")):
            if bad.any():
                row = int(bad.argmax())
                held = ", ".join(map(str, np.unique(ids[row])[:4].tolist()))
                raise DataError(
                    f"{archive.path}, row {row}: {what} ({held}); {self.set_name} has the ids 0 to "
                    f"{len(self.tasks) - 1}. The file is damaged or of another set."
                )
        return Index(task, np.arange(episodes), np.full(episodes, LAYOUTS[self.set_name].rows))


def _layout_of(archive: Archive, wanted: str | None) -> str:
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
