"""Finds damage: reads every byte of a dataset and compares it with what the manifest says."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from flowmbpo.data.dataset.format import (
    MANIFEST,
    RESTORE,
    ROW_FIELDS,
    Array,
    Manifest,
    ShardRecord,
    TaskRecord,
    first_place,
    open_shard,
    read_index,
    read_manifest,
)
from flowmbpo.errors import DataError

_GO_ON = "Repeat the command that was writing the dataset: it goes on where it stopped."
_REMOVE = "Move files away that do not belong to the dataset."
_RESTORE = "Restore damaged files from a copy, or record or convert the dataset again."
SUM_TOLERANCE = 1e-9  # of sums of float32 rewards, added up in another order in float64


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong; `file` is relative to the dataset, `advice` says what to do (or is empty)."""

    file: str
    problem: str
    advice: str = _RESTORE

    def __str__(self) -> str:
        return f"{self.file}: {self.problem}"


def verify(path: Path | str) -> list[Finding]:
    """All damage in the dataset, finished or not; empty where there is none. A file with other bytes is one finding.

    Checked: the manifest against its own hash; of every file the size and SHA-256, its checksums, its index (episodes
    cover the rows exactly, in order; ids unique in the set; returns), counts and finite values; sums of every task.
    Raises DataError where `path` is no dataset at all.
    """
    path = Path(path)
    try:
        manifest = read_manifest(path)
    except DataError as error:
        if not (path / MANIFEST).is_file():
            raise  # it says where the dataset is instead
        return [Finding(MANIFEST, _bare(error, path / MANIFEST), _RESTORE if str(error).endswith(RESTORE) else "")]
    findings = [] if manifest.complete else [Finding(MANIFEST, "the dataset is unfinished", _GO_ON)]
    findings += _check_listing(path, manifest)
    tasks = {task.name: task for task in manifest.tasks}
    sums: dict[str, dict[str, Any]] = {name: defaultdict(int) for name in tasks}
    ids: dict[str, Array] = {}
    for record in manifest.files:
        file, task = path / record.name, tasks.get(record.task)
        try:
            if task is None:
                problems = [f"belongs to task {record.task}, which the manifest does not have"]
            else:  # what became of the content of a file with other bytes follows from that
                problems = _changed_bytes(file, record) or list(_check_content(file, record, task, sums, ids))
        except DataError as error:
            problems = [_bare(error, file)]
        findings += [Finding(record.name, problem) for problem in problems]
    findings += _check_ids(ids)
    if manifest.complete and not findings:
        findings += [Finding(MANIFEST, text) for task in manifest.tasks for text in _compare(task, sums[task.name])]
    return findings


def _bare(error: DataError, path: Path) -> str:
    """What is wrong, without the file's name and the advice."""
    return str(error).removeprefix(f"{path}: ").removesuffix(f". {RESTORE}")


def _check_listing(path: Path, manifest: Manifest) -> Iterator[Finding]:
    counted = Counter(record.name for record in manifest.files)
    for name, times in counted.items():
        if times > 1:
            yield Finding(MANIFEST, f"lists {name} {times} times")
    if manifest.complete:
        for file in sorted(path.glob("*/*.h5")):
            name = file.relative_to(path).as_posix()
            if name not in counted:
                yield Finding(name, "is not in the manifest", _REMOVE)


def _changed_bytes(path: Path, record: ShardRecord) -> list[str]:
    """How a file differs from what was written; empty where it does not."""
    try:
        with open(path, "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            size = file.tell()
    except FileNotFoundError:
        return ["is missing"]
    except OSError as error:
        return [f"cannot be read: {error.strerror or error}"]
    if size != record.size:
        return [f"has {size} bytes instead of {record.size}"]
    return [] if digest == record.sha256 else [f"has SHA-256 {digest} instead of {record.sha256}"]


def _check_content(
    path: Path, record: ShardRecord, task: TaskRecord, sums: dict[str, dict[str, Any]], ids: dict[str, Array]
) -> Iterator[str]:
    """What is wrong inside a file; its figures are added to its task's `sums`, its episodes to `ids`."""
    index = read_index(path)
    length, start = index["length"], index["start"]
    if len({len(values) for values in index.values()}) > 1 or not len(length) or (length < 1).any():
        yield "the episodes' index is not consistent"
        return
    ids[record.name] = index["id"]
    ends = start + length + 1
    if start[0] != 0 or (start[1:] != ends[:-1]).any():
        yield "its episodes do not cover the rows one after another"
        return
    if (len(length), int(length.sum())) != (record.episodes, record.transitions):
        yield (
            f"has {len(length)} episodes and {int(length.sum())} transitions where the manifest lists "
            f"{record.episodes} and {record.transitions}"
        )
    rows = int(ends[-1])
    shapes = {"obs": (rows, task.obs_dim), "action": (rows, task.action_dim), "reward": (rows,), "terminated": (rows,)}
    with open_shard(path) as file:
        found = {name: file[name].shape for name in ROW_FIELDS}
        if found != shapes:
            yield f"has rows of the shapes {found} instead of {shapes}"
            return
        values = {name: file[name][:] for name in ROW_FIELDS}
    for name in ("obs", "action", "reward"):
        place = first_place(~np.isfinite(values[name]))
        if place:
            column = f", column {place[1]}" if len(place) > 1 else ""
            yield f"{name} is {values[name][place]} in row {place[0]}{column}"
    final = ends - 1
    reward, terminated = values["reward"].astype(np.float64), values["terminated"]
    if values["action"][final].any():
        yield "a final observation has an action"
    if reward[final].any() or terminated[final].any():
        yield "a final observation has a reward or is terminated"
    if np.delete(terminated, final - 1).any() or (terminated > 1).any():
        yield "an episode is terminated before its last transition"
    size = np.add.reduceat(np.abs(reward), start)
    wrong_return = ~(np.abs(np.add.reduceat(reward, start) - index["return"]) <= SUM_TOLERANCE * (1 + size))
    if wrong_return.any():
        yield f"the return of episode {int(index['id'][wrong_return][0])} is not the sum of its rewards"
    total = sums[task.name]
    total["episodes"] += len(final)
    total["transitions"] += int(length.sum())
    total["reward_sum"] += float(reward.sum())
    total["reward_square_sum"] += float(np.square(reward).sum())
    total["size"] += float(size.sum())  # what rounding is measured by


def _check_ids(ids: dict[str, Array]) -> Iterator[Finding]:
    """A finding for every file with an id that an earlier file, or the file itself, has too."""
    if not ids:
        return
    names = list(ids)
    every = np.concatenate(list(ids.values()))
    order = np.argsort(every, kind="stable")
    file = np.repeat(np.arange(len(names)), [len(values) for values in ids.values()])[order]
    twice = np.flatnonzero(np.diff(every[order]) == 0) + 1
    for number, first in zip(*np.unique(file[twice], return_index=True), strict=True):
        yield Finding(names[number], f"episode id {every[order[twice[first]]]} is there twice")


def _compare(task: TaskRecord, sums: dict[str, Any]) -> Iterator[str]:
    if (sums["episodes"], sums["transitions"]) != (task.episodes, task.transitions):
        yield (
            f"task {task.name}: {task.episodes} episodes and {task.transitions} transitions, the files hold "
            f"{sums['episodes']} and {sums['transitions']}"
        )
    for name, size in (("reward_sum", sums["size"]), ("reward_square_sum", sums["reward_square_sum"])):
        if abs(sums[name] - getattr(task, name)) > SUM_TOLERANCE * (1 + size):
            yield f"task {task.name}: {name} {getattr(task, name)}, the files hold {sums[name]}"
