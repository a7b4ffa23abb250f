"""Writes a dataset so that a process killed at any moment leaves it resumable and exact."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from pydantic import ValidationError

from flowmbpo.data.dataset.episode_ids import EpisodeIds
from flowmbpo.data.dataset.episodes import Episodes, check_episodes
from flowmbpo.data.dataset.manifest import (
    MANIFEST,
    Manifest,
    SpoolRecord,
    TaskRecord,
    read_manifest,
    write_manifest,
)
from flowmbpo.data.dataset.reader import Dataset
from flowmbpo.data.dataset.sealing import Sealer
from flowmbpo.data.dataset.shard import EPISODE, read_episodes_index
from flowmbpo.data.dataset.spool import FOLDER, Spool
from flowmbpo.errors import DataError, StorageError
from flowmbpo.files import refused, remove_leftovers

SHARD_BYTES = 64 * 2**20  # of rows before compression; MT80's 97 GB make some 1500 files in 80 folders
PART_BYTES = 8 * 2**20  # rows that are laid out at once
LOCK = ".lock"
_NO_LOCKS = (errno.ENOTSUP, errno.ENOLCK, errno.ENOSYS)  # file systems without flock


class TaskWidths(Protocol):
    """What a writer must know of a task; a `TaskInfo` will do."""

    @property
    def name(self) -> str: ...
    @property
    def obs_dim(self) -> int: ...
    @property
    def action_dim(self) -> int: ...


class DatasetWriter:
    """One writer at a time. Whole episodes go in; `checkpoint` makes durable what went in so far.

    Rows wait in spools (`spool`) until they fill a shard, which is composed in memory, put in place in
    one step and never changed again. `dataset.json` lists shards and spools as of the last checkpoint;
    `resume` removes everything else. What is left is exactly the episodes of that checkpoint, and equal
    calls from there on lead to equal files, interrupted or not.
    """

    def __init__(self, path: Path, manifest: Manifest, lock: int) -> None:
        """Use `create` or `resume`."""
        self.path = path
        self.source = dict(manifest.source)  # anything JSON; stored by the next checkpoint or `finish`
        self.progress = dict(manifest.progress)
        self._manifest = manifest
        self._lock: int | None = lock
        self._failed = False
        self._ids = EpisodeIds()
        self._figures = [record.model_dump() for record in manifest.tasks]
        self._shards = {record.name: list(manifest.shards(task)) for task, record in enumerate(manifest.tasks)}
        self._numbers = [len(shards) for shards in self._shards.values()]  # of each task's next shard
        self._sealer = Sealer(path)
        self._spools: dict[int, Spool] = {}
        self._emptied: list[Spool] = []  # sealed since the last checkpoint, which still needs them

    @classmethod
    def create(
        cls,
        path: Path | str,
        set_name: str,
        tasks: Sequence[TaskWidths],
        source: dict[str, Any],
        *,
        progress: dict[str, Any] | None = None,
    ) -> DatasetWriter:
        """Begin a dataset in a folder that does not exist or is empty; `tasks` in the order of their ids.

        `progress` is what `resume` gives back until the first checkpoint. Raises DataError where the
        folder is taken or a task's name is no folder's, StorageError.
        """
        path = Path(path)
        _check_free(path)
        try:
            records = tuple(TaskRecord(name=t.name, obs_dim=t.obs_dim, action_dim=t.action_dim) for t in tasks)
        except ValidationError as error:
            raise DataError(f"{path}: a task cannot be stored: {error}") from error
        if not records or len({record.name for record in records}) < len(records):
            raise DataError(f"{path}: a dataset needs one or more tasks of different names: {[t.name for t in tasks]}")
        manifest = Manifest(
            set_name=set_name,
            obs_dim=max(record.obs_dim for record in records),
            action_dim=max(record.action_dim for record in records),
            source=source,
            tasks=records,
        )
        try:
            (path / FOLDER).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise refused(path, error) from error
        lock = _acquire(path)
        try:
            _check_free(path)  # again: another writer may have come and gone since
            writer = cls(path, manifest, lock)
            writer.checkpoint(progress or {})
        except (DataError, StorageError):
            os.close(lock)
            raise
        return writer

    @classmethod
    def resume(cls, path: Path | str) -> DatasetWriter:
        """Go on with an unfinished dataset from its last checkpoint; `progress` is what was given there.

        Raises DataError where there is no unfinished dataset, another process writes it, or files that
        the checkpoint needs are gone or damaged; StorageError.
        """
        path = Path(path)
        _read_unfinished(path)
        lock = _acquire(path)
        try:
            writer = cls(path, _read_unfinished(path), lock)  # another writer may have finished it since
            writer._restore()
        except (DataError, StorageError):
            os.close(lock)
            raise
        return writer

    @property
    def tasks(self) -> tuple[TaskRecord, ...]:
        """The tasks with what has been added so far."""
        return tuple(TaskRecord(**figures) for figures in self._figures)

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
        ids = None if episode_id is None else [episode_id]
        one = [np.asarray(values)[None] for values in (obs, action, reward, terminated)]
        self.add_many(task_id, one[0], one[1], one[2], one[3], ids, source=source)

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
        if not 0 <= task_id < len(self._figures):
            raise DataError(
                f"{self.path}: unknown task id {task_id}: set {self._manifest.set_name} has 0 to "
                f"{len(self._figures) - 1}"
            )
        rewards = np.asarray(reward, np.float32)
        count = len(rewards)
        ids = np.arange(count) + self._ids.next_free if episode_ids is None else np.asarray(episode_ids, np.int64)
        ended = np.zeros(rewards.shape, np.bool_) if terminated is None else np.asarray(terminated, np.bool_)
        episodes = Episodes(np.asarray(obs, np.float32), np.asarray(action, np.float32), rewards, ended, ids, source)
        record = self._manifest.tasks[task_id]
        if ids.shape != (count,):
            raise DataError(f"task {record.name}: {ids.size} episode ids for {count} episodes")
        if not count:
            return
        check_episodes(record, episodes)
        taken = self._ids.add(ids)
        if taken is not None:
            raise DataError(f"{self.path}: task {record.name}: episode id {taken} comes twice: ids are unique in a set")
        self._failed = True  # until all parts are written: a checkpoint between them would tear the call apart
        self._append(task_id, episodes)
        self._failed = False

    def checkpoint(self, progress: dict[str, Any]) -> None:
        """Make everything added so far durable, in one step with `progress` (small, JSON).

        Raises DataError where `progress` is no JSON or an earlier write failed, StorageError; the last
        checkpoint then stands.
        """
        self._check_open()
        self.progress = dict(progress)
        for spool in self._spools.values():
            spool.sync()
        spools = tuple(
            SpoolRecord(task=self._name(task), number=spool.number, rows=spool.rows, episodes=spool.episodes)
            for task, spool in sorted(self._spools.items())
        )
        self._publish(complete=False, progress=self.progress, spools=spools)

    def finish(self) -> Dataset:
        """Put the last rows into shards and declare the dataset complete; the writer is then closed.

        Raises StorageError; the dataset can then be resumed from its last checkpoint.
        """
        self._check_open()
        for task in sorted(self._spools):
            self._seal(task)
        self._publish(complete=True, progress={}, spools=())
        for leftover in (self.path / FOLDER).iterdir():
            leftover.unlink()
        (self.path / FOLDER).rmdir()
        (self.path / LOCK).unlink(missing_ok=True)
        self.close()
        return Dataset.open(self.path)

    def close(self) -> None:
        """Let another writer have the folder. What was added after the last checkpoint is not kept."""
        if self._lock is not None:
            self._sealer.close()
            os.close(self._lock)
            self._lock = None

    def __enter__(self) -> DatasetWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _append(self, task: int, episodes: Episodes) -> None:
        record = self._manifest.tasks[task]
        width = record.obs_dim + record.action_dim + 2
        rows_each = episodes.length + 1
        shard_rows = max(1, SHARD_BYTES // (4 * width))
        part = max(1, PART_BYTES // (4 * width * rows_each))
        while len(episodes):
            spool = self._spools.get(task)
            if spool is None:
                spool = Spool(self.path, record.name, self._numbers[task], width)
                self._spools[task] = spool
            # Whole episodes until the shard is full, wherever the calls' borders fall.
            room = -(-(shard_rows - spool.rows) // rows_each)
            count = min(room, part, len(episodes))
            now, episodes = episodes.part(0, count), episodes.part(count)
            index = now.index()
            spool.append(now.rows(), index)
            self._count(task, now, index)
            if spool.rows >= shard_rows:
                self._seal(task)

    def _count(self, task: int, episodes: Episodes, index: npt.NDArray[Any]) -> None:
        figures = self._figures[task]
        figures["episodes"] += len(episodes)
        figures["transitions"] += len(episodes) * episodes.length
        figures["reward_sum"] += float(index["return"].sum())
        figures["reward_square_sum"] += float(np.square(episodes.reward, dtype=np.float64).sum())

    def _seal(self, task: int) -> None:
        """Have the task's spool made the next shard."""
        spool = self._spools.pop(task)
        self._emptied.append(spool)
        self._numbers[task] = spool.number + 1
        self._sealer.submit(self._manifest.tasks[task], spool)

    def _publish(self, *, complete: bool, progress: dict[str, Any], spools: tuple[SpoolRecord, ...]) -> None:
        self._failed = True  # unless all goes well: a writer that met an error is to be resumed
        for record in self._sealer.collect():
            self._shards[record.task].append(record)
        self._manifest = self._manifest.model_copy(
            update={
                "complete": complete,
                "source": dict(self.source),
                "progress": progress,
                "tasks": self.tasks,
                "spools": spools,
                "files": tuple(record for shards in self._shards.values() for record in shards),
            }
        )
        write_manifest(self.path, self._manifest)
        for spool in self._emptied:
            for path in spool.paths:
                path.unlink(missing_ok=True)
        self._emptied.clear()
        self._failed = False

    def _restore(self) -> None:
        """Bring the folder to its last checkpoint."""
        listed = {record.name for record in self._manifest.files}
        for name in [record.name for record in self._manifest.tasks]:
            remove_leftovers(self.path / name)
            for path in (self.path / name).glob("*.h5"):
                if f"{name}/{path.name}" not in listed:
                    path.unlink()
        remove_leftovers(self.path)
        numbers = {record.name: task for task, record in enumerate(self._manifest.tasks)}
        (self.path / FOLDER).mkdir(exist_ok=True)
        kept: set[Path] = set()
        for record in self._manifest.spools:
            task = numbers[record.task]
            width = self._manifest.tasks[task].obs_dim + self._manifest.tasks[task].action_dim + 2
            spool = Spool.reopen(
                self.path, record.task, record.number, width, rows=record.rows, episodes=record.episodes
            )
            self._spools[task] = spool
            kept.update(spool.paths)
            self._remember(spool.paths[1], np.fromfile(spool.paths[1], EPISODE)["id"])
        for path in (self.path / FOLDER).iterdir():
            if path not in kept:
                path.unlink()
        for shard in self._manifest.files:
            self._remember(self.path / shard.name, read_episodes_index(self.path / shard.name)["id"])

    def _remember(self, path: Path, ids: npt.NDArray[np.int64]) -> None:
        taken = self._ids.add(ids)
        if taken is not None:
            raise DataError(f"{path}: episode {taken} is there twice: the dataset is damaged, begin again")

    def _name(self, task: int) -> str:
        return self._manifest.tasks[task].name

    def _check_open(self) -> None:
        if self._lock is None:
            raise DataError(f"{self.path}: this writer is closed: resume the dataset")
        if self._failed:
            raise DataError(f"{self.path}: an earlier write failed: resume the dataset from its last checkpoint")


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
