"""Writes a dataset so that a process killed at any moment leaves it resumable and exact."""

from __future__ import annotations

import errno
import fcntl
import os
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import ValidationError

from flowmbpo.data.dataset.format import (
    MANIFEST,
    Array,
    Manifest,
    ShardRecord,
    TaskRecord,
    check_episodes,
    encode_shard,
    lay_out,
    read_index,
    read_manifest,
    write_manifest,
)
from flowmbpo.data.dataset.reader import Dataset
from flowmbpo.errors import DataError, StorageError
from flowmbpo.files import refused, remove_leftovers, sync_folder, write_bytes_atomic
from flowmbpo.spec import TaskInfo

SHARD_BYTES = 64 * 2**20  # of rows before compression
BUFFER_BYTES = 2**30  # of rows that wait in memory, all tasks together: shards of sets of many tasks are smaller
WAITING = 2  # shards in work or waiting before the caller waits, too
LOCK = ".lock"
_MOST_IDS = 2**31
_NO_LOCKS = (errno.ENOTSUP, errno.ENOLCK, errno.ENOSYS)  # file systems without flock


@dataclass
class _Task:
    """One task while it is written."""

    listed: TaskRecord  # what the finished shards hold
    shards: list[ShardRecord]
    added: TaskRecord  # what they and the buffer hold
    number: int  # of the next shard
    rows: list[Array] = field(default_factory=list)  # of the buffer: episodes that fill no shard yet
    index: list[Array] = field(default_factory=list)
    count: int = 0  # of its rows


class DatasetWriter:
    """One writer at a time. Whole episodes go in, and wait in memory until they fill a shard of their task.

    A full shard is composed in memory, put in place in one step and never changed again. `dataset.json` lists the
    shards that were finished at the last `checkpoint`; `resume` removes everything else, and the caller gives the
    episodes again that are not in `holds`. Where a shard ends depends on its task's episodes alone, so that equal
    episodes in equal order make equal files, interrupted or not.
    """

    def __init__(self, path: Path, manifest: Manifest, lock: int) -> None:
        """Use `create` or `resume`."""
        self.path = path
        self.source = dict(manifest.source)  # anything JSON; stored by the next checkpoint or `finish`
        self._manifest = manifest
        self._lock: int | None = lock
        self._failed = False
        self._taken = np.zeros(1024, np.bool_)  # by episode id
        shards = [list(manifest.shards(task)) for task in range(len(manifest.tasks))]
        self._tasks = [_Task(record, own, record, len(own)) for record, own in zip(manifest.tasks, shards, strict=True)]
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="seal")  # HDF5 compresses without Python's lock
        self._sealing: deque[tuple[Future[ShardRecord], _Task, TaskRecord]] = deque()

    @classmethod
    def create(
        cls, path: Path | str, set_name: str, tasks: Sequence[TaskInfo | TaskRecord], source: dict[str, Any]
    ) -> DatasetWriter:
        """Begin a dataset in a folder that does not exist or is empty; `tasks` in the order of their ids.

        Raises DataError where the folder is taken or a task's name is no folder's, StorageError.
        """
        path = Path(path)
        _check_free(path)
        if not tasks or len({task.name for task in tasks}) < len(tasks):
            raise DataError(f"{path}: a dataset needs one or more tasks of different names: {[t.name for t in tasks]}")
        widest = {width: max(getattr(task, width) for task in tasks) for width in ("obs_dim", "action_dim")}
        content = {"set_name": set_name, **widest, "source": source, "tasks": tuple(tasks)}
        try:
            manifest = Manifest.model_validate(content, from_attributes=True)
            path.mkdir(parents=True, exist_ok=True)
        except ValidationError as error:
            raise DataError(f"{path}: a task cannot be stored: {error.errors()[0]['msg']}") from error
        except OSError as error:
            raise refused(path, error) from error
        return cls._open(path, manifest)

    @classmethod
    def begin(
        cls,
        path: Path,
        set_name: str,
        tasks: Sequence[TaskInfo | TaskRecord],
        source: dict[str, Any],
        asked: Callable[[dict[str, Any]], dict[str, Any]],
    ) -> DatasetWriter:
        """`create`, or `resume` what the same command began: it has the same tasks and `asked` for the same.

        `asked` takes the command's own part of a source. Raises DataError where the dataset is finished or another's.
        """
        if not (path / MANIFEST).is_file():
            return cls.create(path, set_name, tasks, source)
        manifest = read_manifest(path)
        if manifest.complete:
            raise DataError(f"{path}: holds a finished dataset. Name another folder, or remove this one first.")
        now, begun = asked(source), asked(manifest.source)
        differing = sorted(key for key in {*now, *begun} if now.get(key) != begun.get(key))
        held, given = ([(t.name, t.obs_dim, t.action_dim) for t in some] for some in (manifest.tasks, tasks))
        if differing or (held, manifest.set_name) != (given, set_name):
            raise DataError(
                f"{path}: holds an unfinished dataset that another command began ({', '.join(differing or ['tasks'])} "
                "differ). Give the same command as then to go on with it, or remove the folder, or name another."
            )
        return cls.resume(path)

    @classmethod
    def resume(cls, path: Path | str) -> DatasetWriter:
        """Go on with an unfinished dataset from its last checkpoint.

        Raises DataError where there is no unfinished dataset, another process writes it, or a file that is listed is
        gone or damaged; StorageError.
        """
        _read_unfinished(Path(path))
        return cls._open(Path(path), None)

    @classmethod
    def _open(cls, path: Path, new: Manifest | None) -> DatasetWriter:
        """Lock the folder and look again, for another writer may have come and gone since. Raises as the callers do."""
        lock = _acquire(path)
        try:
            if new is not None:
                _check_free(path)
                write_manifest(path, new)
            writer = cls(path, new or _read_unfinished(path), lock)
            writer._restore()
        except (DataError, StorageError):
            os.close(lock)
            raise
        return writer

    def holds(self, ids: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        """Which episodes have been added."""
        return (ids < len(self._taken)) & self._taken[np.minimum(ids, len(self._taken) - 1)]

    def add(
        self,
        task_id: int,
        obs: npt.ArrayLike,
        action: npt.ArrayLike,
        reward: npt.ArrayLike,
        terminated: npt.ArrayLike,
        *,
        episode_id: int | None = None,
        source: int = 0,
    ) -> None:
        """Add one episode: obs [L + 1, O], action [L, A], reward and terminated [L]; see `add_many`."""
        obs, action, reward, terminated = (np.asarray(values)[None] for values in (obs, action, reward, terminated))
        ids = None if episode_id is None else [episode_id]
        self.add_many(task_id, obs, action, reward, terminated, ids, source=source)

    def add_many(
        self,
        task_id: int,
        obs: npt.ArrayLike,
        action: npt.ArrayLike,
        reward: npt.ArrayLike,
        terminated: npt.ArrayLike | None = None,
        episode_ids: npt.ArrayLike | None = None,
        *,
        source: int = 0,
    ) -> None:
        """Add E episodes of L transitions: obs [E, L + 1, O], action [E, L, A], reward [E, L].

        `action[:, t]` and `reward[:, t]` are those that lead from `obs[:, t]` to `obs[:, t + 1]`. All
        false is assumed where `terminated` [E, L] is not given, and the next free ids where
        `episode_ids` [E] is not. `source` is an index into a list of sources in the manifest.
        Raises DataError (nothing is added then) naming task, episode, step, field and value on unknown
        tasks, wrong widths, values that are not finite and ids that are there already; StorageError.
        """
        self._check_open()
        if not 0 <= task_id < len(self._tasks):
            held = f"set {self._manifest.set_name} has 0 to {len(self._tasks) - 1}"
            raise DataError(f"{self.path}: unknown task id {task_id}: {held}")
        values = {"obs": obs, "action": action, "reward": reward}
        fields: dict[str, Array] = {name: np.asarray(value, np.float32) for name, value in values.items()}
        ended = np.zeros(fields["reward"].shape) if terminated is None else terminated
        fields["terminated"] = np.asarray(ended, np.bool_)
        count = len(fields["reward"])
        if episode_ids is None:
            episode_ids = np.arange(count) + np.flatnonzero(self._taken).max(initial=-1) + 1
        ids = np.asarray(episode_ids, np.int64)
        record = self._manifest.tasks[task_id]
        if ids.shape != (count,):
            raise DataError(f"task {record.name}: {ids.size} episode ids for {count} episodes")
        if not count:
            return
        check_episodes(record, fields, ids, source)
        self._take(record.name, ids)
        self._failed = True  # until all parts are written: a checkpoint between them would tear the call apart
        self._append(self._tasks[task_id], fields, ids, source)
        self._failed = False

    def checkpoint(self, *, seal: bool = False) -> None:
        """Make the shards that are full durable, in one step with `source`; with `seal` all that has been added.

        Raises DataError where `source` is no JSON or an earlier write failed, StorageError; the last
        checkpoint then stands.
        """
        self._check_open()
        self._failed = True  # unless all goes well: a writer that met an error is to be resumed
        for task in self._tasks:
            if seal and task.count:
                self._seal(task)
        while self._sealing:
            self._collect()
        files = tuple(record for task in self._tasks for record in task.shards)
        tasks = tuple(task.listed for task in self._tasks)
        self._manifest = self._manifest.model_copy(update={"source": dict(self.source), "tasks": tasks, "files": files})
        write_manifest(self.path, self._manifest)
        self._failed = False

    def finish(self) -> Dataset:
        """Put the last rows into shards and declare the dataset complete; the writer is then closed.

        Raises StorageError; the dataset can then be resumed from its last checkpoint.
        """
        self._manifest = self._manifest.model_copy(update={"complete": True})
        self.checkpoint(seal=True)
        (self.path / LOCK).unlink(missing_ok=True)
        self.close()
        return Dataset.open(self.path)

    def close(self) -> None:
        """Let another writer have the folder. What the last checkpoint does not list is not kept."""
        if self._lock is not None:
            self._thread.shutdown(cancel_futures=True)  # a shard that it is writing is completed
            os.close(self._lock)
            self._lock = None

    def __enter__(self) -> DatasetWriter:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _take(self, task: str, ids: npt.NDArray[np.int64]) -> None:
        """Note the ids of new episodes, all or none."""
        wrong = ids[(ids < 0) | (ids >= _MOST_IDS)]
        if len(wrong):
            raise DataError(f"{self.path}: task {task}: episode ids are 0 to {_MOST_IDS - 1}, here {wrong[0]} is one")
        values, counts = np.unique(ids, return_counts=True)
        twice = values[(counts > 1) | self.holds(values)]
        if len(twice):
            raise DataError(f"{self.path}: task {task}: episode id {twice[0]} comes twice: ids are unique in a set")
        if values[-1] >= len(self._taken):
            self._taken = np.pad(self._taken, (0, max(int(values[-1]) + 1, 2 * len(self._taken)) - len(self._taken)))
        self._taken[values] = True

    def _append(self, task: _Task, fields: dict[str, Array], ids: npt.NDArray[np.int64], source: int) -> None:
        rows_each = fields["reward"].shape[1] + 1
        row_bytes = 4 * (task.added.obs_dim + task.added.action_dim + 2)
        shard_rows = max(1, min(SHARD_BYTES, BUFFER_BYTES // len(self._tasks)) // row_bytes)
        begin = 0
        while begin < len(ids):
            # Whole episodes until the shard is full, wherever the calls' borders fall.
            end = begin + -(-(shard_rows - task.count) // rows_each)
            now = {name: values[begin:end] for name, values in fields.items()}
            rows, index = lay_out(now, ids[begin:end], source)
            task.rows.append(rows)
            task.index.append(index)
            task.count += len(rows)
            added = {
                "episodes": len(index),
                "transitions": len(index) * (rows_each - 1),
                "reward_sum": float(index["return"].sum()),
                "reward_square_sum": float(np.square(now["reward"], dtype=np.float64).sum()),
            }
            update = {name: getattr(task.added, name) + figure for name, figure in added.items()}
            task.added = task.added.model_copy(update=update)
            if task.count >= shard_rows:
                self._seal(task)
            begin = end

    def _seal(self, task: _Task) -> None:
        """Have the task's buffer made its next shard."""
        while len(self._sealing) >= WAITING:
            self._collect()
        work = self._thread.submit(_write_shard, self.path, task.added.name, task.number, task.rows, task.index)
        self._sealing.append((work, task, task.added))
        task.number += 1
        task.rows, task.index, task.count = [], [], 0

    def _collect(self) -> None:
        """Wait for the oldest shard in work. Raises StorageError."""
        work, task, record = self._sealing.popleft()
        task.shards.append(work.result())
        task.listed = record

    def _restore(self) -> None:
        listed = {self.path / record.name for record in self._manifest.files}
        remove_leftovers(self.path)
        for record in self._manifest.tasks:
            remove_leftovers(self.path / record.name)
            for path in (self.path / record.name).glob("*.h5"):
                if path not in listed:
                    path.unlink()
        for shard in self._manifest.files:
            self._take(shard.task, read_index(self.path / shard.name, "id")["id"])

    def _check_open(self) -> None:
        if self._lock is None:
            raise DataError(f"{self.path}: this writer is closed: resume the dataset")
        if self._failed:
            raise DataError(f"{self.path}: an earlier write failed: resume the dataset from its last checkpoint")


def _write_shard(dataset: Path, task: str, number: int, rows: list[Array], episodes: list[Array]) -> ShardRecord:
    """Write `TASK/number.h5`, wholly or not at all. Raises StorageError."""
    index = np.concatenate(episodes)
    data = encode_shard(task, np.concatenate(rows), index)
    name = f"{task}/{number:05d}.h5"
    try:
        (dataset / task).mkdir(exist_ok=True)
        digest = write_bytes_atomic(dataset / name, data)
        sync_folder(dataset)
    except OSError as error:
        raise refused(dataset / name, error) from error
    counts = {"episodes": len(index), "transitions": int(index["length"].sum())}
    return ShardRecord(name=name, task=task, sha256=digest, size=len(data), **counts)


def _read_unfinished(path: Path) -> Manifest:
    manifest = read_manifest(path)
    if manifest.complete:
        raise DataError(f"{path}: this dataset is finished, nothing can be added: choose another folder")
    return manifest


def _check_free(path: Path) -> None:
    if (path / MANIFEST).exists():
        state = "a finished dataset" if read_manifest(path).complete else "an unfinished dataset, which can be resumed"
        raise DataError(f"{path}: holds {state}: choose another folder, or delete this one")
    # A writer that died before its first manifest left nothing but these.
    if path.exists() and (not path.is_dir() or any(not place.name.startswith(".") for place in path.iterdir())):
        raise DataError(f"{path}: exists and is not empty: a new dataset needs a folder of its own")


def _acquire(path: Path) -> int:
    """Hold the folder's lock; the kernel drops it with the process."""
    try:
        descriptor = os.open(path / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise refused(path / LOCK, error) from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(descriptor)
        raise DataError(f"{path}: another process is writing this dataset: wait for it or end it") from error
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            os.close(descriptor)
            raise refused(path / LOCK, error) from error
    return descriptor
