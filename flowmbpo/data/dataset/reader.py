"""Reads a finished dataset: tasks, episodes and rows, from any part of it."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from flowmbpo.data.dataset.format import (
    EPISODE,
    RESTORE,
    ROW_FIELDS,
    Manifest,
    TaskRecord,
    open_shard,
    read_index,
    read_manifest,
    row_starts,
)
from flowmbpo.errors import DataError, nearest

EPISODE_TABLE = np.dtype([("start", "<i8"), *EPISODE.descr, ("shard", "<i8")])


@dataclass(frozen=True)
class RowArrays:
    """R rows of one task with its own widths; what a row holds is drawn in `format`."""

    obs: npt.NDArray[np.float32]  # [R, O]
    action: npt.NDArray[np.float32]  # [R, A]
    reward: npt.NDArray[np.float32]  # [R]
    terminated: npt.NDArray[np.uint8]  # [R], 0 or 1

    @classmethod
    def allocate(cls, rows: int, task: TaskRecord) -> RowArrays:
        """Room for `rows` rows, not filled."""
        obs, action = (np.empty((rows, width), np.float32) for width in (task.obs_dim, task.action_dim))
        return cls(obs, action, np.empty(rows, np.float32), np.empty(rows, np.uint8))


@dataclass(frozen=True)
class EpisodeBlock(RowArrays):
    """E whole episodes: rows start[e] to start[e] + length[e], the last of which is the final observation."""

    start: npt.NDArray[np.int64]  # [E], into this block's rows
    length: npt.NDArray[np.int64]  # [E], transitions
    id: npt.NDArray[np.int64]  # [E]


class Dataset:
    """A finished dataset. Nothing is held but its manifest; every read goes to the files."""

    def __init__(self, path: Path, manifest: Manifest) -> None:
        """Use `open`."""
        self.path = path
        self.manifest = manifest
        self.set_name = manifest.set_name  # that it was recorded for
        self.tasks = manifest.tasks  # in the order of their ids
        self.obs_dim, self.action_dim = manifest.obs_dim, manifest.action_dim  # the widest ones
        self.source = manifest.source  # where the data come from, as the writer put it
        self.episodes = sum(task.episodes for task in self.tasks)
        self.transitions = sum(task.transitions for task in self.tasks)
        listing = "".join(f"{record.name} {record.sha256}\n" for record in manifest.files)
        self.fingerprint = hashlib.sha256(listing.encode("ascii")).hexdigest()  # equal for equal data
        self._shards = [manifest.shards(task) for task in range(len(manifest.tasks))]

    @classmethod
    def open(cls, path: Path | str) -> Dataset:
        """Open the dataset in folder `path`.

        Raises DataError where the folder is no dataset (naming one next to it), is unfinished, or lacks a file or
        part of it. `verify` looks at all of its bytes.
        """
        path = Path(path)
        manifest = read_manifest(path)
        if not manifest.complete:
            raise DataError(
                f"{path}: this dataset is unfinished: repeat the command that was writing it, "
                "which goes on where it stopped"
            )
        for record in manifest.files:
            resized = record.resized(path / record.name)
            if resized:
                raise DataError(f"{path / record.name} {resized}: the dataset is damaged. {RESTORE}")
        return cls(path, manifest)

    def task_id(self, name: str) -> int:
        """The id of the task with this name (what a perturbation added to it does not count).

        Raises DataError naming what there is.
        """
        plain, held = name.partition("+")[0], [task.name for task in self.tasks]
        if name in held:
            return held.index(name)
        for number, task in enumerate(self.tasks):
            if task.plain_name == plain:
                return number
        raise DataError(f"{self.path}: holds no task '{name}'.{nearest(plain, held)} It holds: {', '.join(held)}")

    def reward_moments(self, names: Sequence[str], *, balanced: bool) -> tuple[int, float, float]:
        """(transitions, mean reward, mean squared reward) over these tasks.

        Every task counts alike where `balanced`, otherwise every transition. Raises DataError where a
        task is not there or has no episode.
        """
        records = [self.tasks[self.task_id(name)] for name in names]
        for record in records:
            if not record.transitions:
                raise DataError(f"{self.path}: task {record.name} has no episodes")
        sums = [(record.transitions, record.reward_sum, record.reward_square_sum) for record in records]
        counts, rewards, squares = np.array(sums, np.float64).T.copy()
        weight = 1 / (counts * len(records)) if balanced else np.full(len(records), 1 / counts.sum())
        return int(counts.sum()), float(weight @ rewards), float(weight @ squares)

    def shard_paths(self, task: int) -> tuple[Path, ...]:
        """The files of a task."""
        return tuple(self.path / record.name for record in self._shards[task])

    def episode_table(self, task: int, episodes: range | None = None) -> npt.NDArray[Any]:
        """EPISODE_TABLE [E]: episodes of a task (by default all); `start` counts the rows of the episode's `shard`.

        Raises IndexError where the task has fewer, DataError where a file is damaged.
        """
        held = self.tasks[task].episodes
        asked = range(held) if episodes is None else episodes
        if len(asked) and not (asked.step == 1 and 0 <= asked.start < asked.stop <= held):
            raise IndexError(f"{asked} of the {held} episodes of task {self.tasks[task].name}")
        parts, first = [np.empty(0, EPISODE_TABLE)], 0
        for number, record in enumerate(self._shards[task]):
            low, high = max(asked.start - first, 0), min(asked.stop - first, record.episodes)
            first += record.episodes
            if low < high:
                part = np.empty(high - low, EPISODE_TABLE)
                part["shard"] = number
                for name, values in read_index(self.path / record.name).items():
                    part[name] = values[low:high]
                parts.append(part)
        return np.concatenate(parts)

    def read_rows(self, task: int, shard: int, spans: Iterable[tuple[int, int, int]], out: RowArrays) -> None:
        """Read rows `first` to before `end` of a shard into `out` from row `to` on, for all (first, end, to).

        Raises DataError where the file or a checksum in it is damaged.
        """
        with open_shard(self.shard_paths(task)[shard]) as file:
            fields = [(file[name], getattr(out, name)) for name in ROW_FIELDS]
            for (first, end, to), (store, values) in itertools.product(spans, fields):
                store.read_direct(values, np.s_[first:end], np.s_[to : to + end - first])

    def read_episodes(self, task: int, episodes: range) -> EpisodeBlock:
        """Episodes of a task by their place in its table; whole shards are not held for it.

        Raises IndexError where the task has fewer, DataError where a file is damaged.
        """
        table = self.episode_table(task, episodes)
        starts = row_starts(table["length"])
        rows = RowArrays.allocate(int((table["length"] + 1).sum()), self.tasks[task])
        for shard, place in zip(*np.unique(table["shard"], return_index=True), strict=True):
            own = table[table["shard"] == shard]
            span = (int(own["start"][0]), int(own["start"][-1] + own["length"][-1] + 1), int(starts[place]))
            self.read_rows(task, int(shard), [span], rows)
        return EpisodeBlock(**vars(rows), start=starts, length=table["length"], id=table["id"])
