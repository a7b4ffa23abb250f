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
    listed = Counter(record.name for record in manifest.files)
    findings += [Finding(MANIFEST, f"lists {name} {times} times") for name, times in listed.items() if times > 1]
    held = [file.relative_to(path).as_posix() for file in sorted(path.glob("*/*.h5")) if manifest.complete]
    findings += [Finding(name, "is not in the manifest", _REMOVE) for name in held if name not in listed]
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
        except OSError as error:
            problems = [f"cannot be read: {error.strerror or error}"]
        findings += [Finding(record.name, problem) for problem in problems]
    numbers, counts = np.unique(np.concatenate([np.empty(0, np.int64), *ids.values()]), return_counts=True)
    for name, own in ids.items():
        twice = own[np.isin(own, numbers[counts > 1])]
        findings += [Finding(name, f"episode id {number} is there twice") for number in twice[:1]]
    if manifest.complete and not findings:
        findings += [Finding(MANIFEST, text) for task in manifest.tasks for text in _compare(task, sums[task.name])]
    return findings


def _bare(error: DataError, path: Path) -> str:
    """What is wrong, without the file's name and the advice."""
    return str(error).removeprefix(f"{path}: ").removesuffix(f". {RESTORE}")


def _changed_bytes(path: Path, record: ShardRecord) -> list[str]:
    """How a file differs from what was written; empty where it does not. Raises OSError."""
    resized = record.resized(path)
    if resized:
        return [resized]
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
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
    widths = {"obs": (task.obs_dim,), "action": (task.action_dim,)}
    shapes = {name: (int(ends[-1]), *widths.get(name, ())) for name in ROW_FIELDS}
    with open_shard(path) as file:
        stored = {name: file[name].shape for name in ROW_FIELDS}
        if stored != shapes:
            yield f"has rows of the shapes {stored} instead of {shapes}"
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
    found = {"episodes": len(final), "transitions": int(length.sum()), "reward_sum": float(reward.sum())}
    found |= {"reward_square_sum": float(np.square(reward).sum()), "size": float(size.sum())}
    for name, figure in found.items():  # `size` is what rounding is measured by
        sums[task.name][name] += figure


def _compare(task: TaskRecord, sums: dict[str, Any]) -> Iterator[str]:
    sizes = {"reward_sum": sums["size"], "reward_square_sum": sums["reward_square_sum"]}
    for name in ("episodes", "transitions", *sizes):
        if abs(sums[name] - getattr(task, name)) > SUM_TOLERANCE * (1 + sizes.get(name, 0)):
            yield f"task {task.name}: {name} {getattr(task, name)}, the files hold {sums[name]}"
