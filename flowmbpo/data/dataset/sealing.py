"""Turns full spools into shards in one background thread: HDF5 compresses without Python's lock."""

from __future__ import annotations

from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from flowmbpo.data.dataset.manifest import ShardRecord, TaskRecord
from flowmbpo.data.dataset.shard import encode_shard
from flowmbpo.data.dataset.spool import Spool
from flowmbpo.files import StagedFile, refused, sync_folder

WAITING = 2  # shards in work or waiting before the caller waits, too


class Sealer:
    """Makes shards in the order in which their spools are handed in."""

    def __init__(self, dataset: Path) -> None:
        self.dataset = dataset
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="seal")
        self._waiting: deque[Future[ShardRecord]] = deque()
        self._done: list[ShardRecord] = []

    def submit(self, task: TaskRecord, spool: Spool) -> None:
        """Make a shard of a spool that nothing is added to any more. Raises what an earlier one met."""
        while len(self._waiting) >= WAITING:
            self._done.append(self._waiting.popleft().result())
        self._waiting.append(self._thread.submit(seal, self.dataset, task, spool))

    def collect(self) -> list[ShardRecord]:
        """Wait for all; the shards made since the last call. Raises StorageError."""
        while self._waiting:
            self._done.append(self._waiting.popleft().result())
        done, self._done = self._done, []
        return done

    def close(self) -> None:
        """End the thread; a shard that it is writing is completed."""
        self._thread.shutdown(cancel_futures=True)


def seal(dataset: Path, task: TaskRecord, spool: Spool) -> ShardRecord:
    """Write a spool's content as `TASK/number.h5`, wholly or not at all. Raises StorageError."""
    rows, index = spool.read()
    data = encode_shard(task.name, task.obs_dim, rows, index)
    name = f"{task.name}/{spool.number:05d}.h5"
    path = dataset / name
    try:
        path.parent.mkdir(exist_ok=True)
        with StagedFile(path) as staged:
            staged.write(data)
            staged.commit()
        sync_folder(dataset)
    except OSError as error:
        raise refused(path, error) from error
    return ShardRecord(
        name=name,
        task=task.name,
        sha256=staged.sha256,
        size=len(data),
        episodes=len(index),
        transitions=int(index["length"].sum()),
    )
