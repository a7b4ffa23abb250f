"""Episodes on their way into a shard: two plain files that only ever grow at their end.

A process may be killed at any moment and an HDF5 file it was writing is then lost whole. Rows therefore
wait here until they fill a shard; what a manifest lists of a spool is on the disk, the rest is cut off.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from flowmbpo.data.dataset.shard import EPISODE, Rows
from flowmbpo.errors import DataError
from flowmbpo.files import refused, sync_folder

FOLDER = ".spool"


class Spool:
    """Rows f32 [R, `width`] and episodes EPISODE [E] of one task; `number` is that of the shard they become."""

    def __init__(self, dataset: Path, task: str, number: int, width: int) -> None:
        self.folder = dataset / FOLDER
        self.number = number
        self.width = width
        self.rows = 0
        self.episodes = 0
        self.paths = tuple(self.folder / f"{task}.{number:05d}.{kind}" for kind in ("rows", "episodes"))
        self._synced = True

    @classmethod
    def reopen(cls, dataset: Path, task: str, number: int, width: int, *, rows: int, episodes: int) -> Spool:
        """The spool as a manifest lists it: what was written later is cut off.

        Raises DataError where less is there than listed, StorageError where the disk refuses.
        """
        spool = cls(dataset, task, number, width)
        spool.rows, spool.episodes = rows, episodes
        for path, wanted in zip(spool.paths, spool._sizes(), strict=True):
            found = path.stat().st_size if path.is_file() else 0
            if found < wanted:
                raise DataError(
                    f"{path}: {found} bytes where the manifest of {dataset} lists {wanted}: "
                    "it was damaged from outside; delete the dataset and begin again"
                )
            try:
                os.truncate(path, wanted)
            except OSError as error:
                raise refused(path, error) from error
        return spool

    def append(self, rows: Rows, episodes: npt.NDArray[Any]) -> None:
        """Write whole episodes behind the others; not durable before `sync`. Raises StorageError."""
        for path, values, end in zip(self.paths, (rows, episodes), self._sizes(), strict=True):
            try:
                # At its own end, not the file's: a write that failed half-way may have left something there.
                with open(path, "r+b" if end else "wb") as file:
                    file.seek(end)
                    file.write(np.ascontiguousarray(values).view(np.uint8).data)
            except OSError as error:
                raise refused(path, error) from error
        self.rows += len(rows)
        self.episodes += len(episodes)
        self._synced = False

    def sync(self) -> None:
        """Bring what was appended to the disk. Raises StorageError."""
        if self._synced:
            return
        for path in self.paths:
            try:
                with open(path, "rb+") as file:
                    os.fsync(file.fileno())
            except OSError as error:
                raise refused(path, error) from error
        sync_folder(self.folder)
        self._synced = True

    def read(self) -> tuple[Rows, npt.NDArray[Any]]:
        """All rows and episodes."""
        rows, episodes = self.paths
        table = np.fromfile(rows, np.float32, count=self.rows * self.width)
        return table.reshape(-1, self.width), np.fromfile(episodes, EPISODE, count=self.episodes)

    def _sizes(self) -> tuple[int, int]:
        """Bytes of the two files that count."""
        return 4 * self.width * self.rows, EPISODE.itemsize * self.episodes
