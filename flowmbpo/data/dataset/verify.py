"""Finds damage: reads every byte of a dataset and compares it with what the manifest says."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from flowmbpo.data.dataset.episode_ids import EpisodeIds
from flowmbpo.data.dataset.manifest import MANIFEST, RESTORE, Manifest, ShardRecord, TaskRecord, read_manifest
from flowmbpo.data.dataset.shard import CHUNK_ROWS, DamagedShardError, open_shard, read_episodes_index
from flowmbpo.errors import DataError

SLICE_ROWS = 16 * CHUNK_ROWS  # read at once
_GO_ON = "Repeat the command that was writing the dataset: it goes on where it stopped."
_REMOVE = "Move files away that do not belong to the dataset."
_RESTORE = "Restore damaged files from a copy, or record or convert the dataset again."
# Sums of float32 rewards, added up in another order in float64.
SUM_TOLERANCE = 1e-9


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong; `file` is relative to the dataset, `advice` says what to do (or is empty)."""

    file: str
    problem: str
    advice: str = _RESTORE

    def __str__(self) -> str:
        return f"{self.file}: {self.problem}"


@dataclass
class _Sums:
    episodes: int = 0
    transitions: int = 0
    reward: float = 0.0
    reward_square: float = 0.0
    reward_size: float = 0.0  # of absolute values: what rounding is measured by


def verify(path: Path | str) -> list[Finding]:
    """All damage in the dataset, finished or not; empty where there is none. A file with other bytes is one finding.

    Checked: the manifest against its own hash; of every file the size, SHA-256, checksums of its
    chunks, its index (episodes cover the rows exactly, in order; ids unique in the set; returns),
    counts and finite values; sums of every task. Raises DataError where `path` is no dataset at all.
    """
    path = Path(path)
    if not (path / MANIFEST).is_file():
        read_manifest(path)  # which says where the dataset is instead
    try:
        manifest = read_manifest(path)
    except DataError as error:
        text = str(error).removeprefix(f"{path / MANIFEST}: ")
        problem = text.removesuffix(f". {RESTORE}")
        return [Finding(MANIFEST, problem, _RESTORE if problem != text else "")]
    findings = [] if manifest.complete else [Finding(MANIFEST, "the dataset is unfinished", _GO_ON)]
    findings += _check_listing(path, manifest)
    tasks = {task.name: task for task in manifest.tasks}
    sums = {name: _Sums() for name in tasks}
    ids = EpisodeIds()
    for record in manifest.files:
        if record.task not in tasks:
            findings.append(Finding(record.name, f"belongs to task {record.task}, which the manifest does not have"))
            continue
        changed = list(_check_bytes(path / record.name, record))
        if not changed:
            content = _content_problems(path, record, tasks[record.task], sums[record.task], ids)
        elif changed[0] != "is missing":  # what became of it follows from the change: no findings of their own
            content = _content_problems(path, record, tasks[record.task], _Sums(), EpisodeIds())
        else:
            content = []
        problems = ["; ".join([*changed, *content])] if changed else content
        findings += [Finding(record.name, problem) for problem in problems]
    if manifest.complete and not findings:
        findings += [Finding(MANIFEST, text) for task in manifest.tasks for text in _compare(task, sums[task.name])]
    return findings


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


def _check_bytes(path: Path, record: ShardRecord) -> Iterator[str]:
    try:
        with open(path, "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            size = file.tell()
    except FileNotFoundError:
        yield "is missing"
        return
    except OSError as error:
        yield f"cannot be read: {error.strerror or error}"
        return
    if size != record.size:
        yield f"has {size} bytes instead of {record.size}"
    if digest != record.sha256:
        yield f"has SHA-256 {digest} instead of {record.sha256}"


def _content_problems(path: Path, record: ShardRecord, task: TaskRecord, sums: _Sums, ids: EpisodeIds) -> list[str]:
    problems: list[str] = []
    try:
        problems.extend(_check_content(path / record.name, record, task, sums, ids))
    except DamagedShardError as error:
        problems.append(error.problem)
    return problems


def _check_content(path: Path, record: ShardRecord, task: TaskRecord, sums: _Sums, ids: EpisodeIds) -> Iterator[str]:
    index = read_episodes_index(path)
    length, start = index["length"], index["start"]
    if len({len(values) for values in index.values()}) > 1 or not len(length) or (length < 1).any():
        yield "the episodes' index is not consistent"
        return
    ends = start + length + 1
    rows = int(ends[-1])
    if start[0] != 0 or (start[1:] != ends[:-1]).any():
        yield "its episodes do not cover the rows one after another"
        return
    if (len(length), int(length.sum())) != (record.episodes, record.transitions):
        yield (
            f"has {len(length)} episodes and {int(length.sum())} transitions where the manifest lists "
            f"{record.episodes} and {record.transitions}"
        )
    taken = ids.add(index["id"])
    if taken is not None:
        yield f"episode id {taken} is there twice"
    with open_shard(path) as file:
        yield from _check_rows(file, rows, task, index, sums)


def _check_rows(file: Any, rows: int, task: TaskRecord, index: dict[str, Any], sums: _Sums) -> Iterator[str]:
    shapes = {"obs": (rows, task.obs_dim), "action": (rows, task.action_dim), "reward": (rows,), "terminated": (rows,)}
    found = {name: file[name].shape for name in shapes}
    if found != shapes:
        yield f"has rows of the shapes {found} instead of {shapes}"
        return
    final = index["start"] + index["length"]
    for name in ("obs", "action"):
        for first in range(0, rows, SLICE_ROWS):
            values = file[name][first : first + SLICE_ROWS]
            if not np.isfinite(values).all():
                row, column = (int(place) for place in np.argwhere(~np.isfinite(values))[0])
                yield f"{name} is {values[row, column]} in row {first + row}, column {column}"
                break
            inside = final[(final >= first) & (final < first + len(values))] - first
            if name == "action" and values[inside].any():
                yield "a final observation has an action"
                break
    reward = file["reward"][:].astype(np.float64)
    terminated = file["terminated"][:]
    if not np.isfinite(reward).all():
        yield f"reward is {reward[~np.isfinite(reward)][0]} in row {int(np.argmin(np.isfinite(reward)))}"
        return
    if reward[final].any() or terminated[final].any():
        yield "a final observation has a reward or is terminated"
    early = np.delete(terminated, final - 1)
    if early.any() or (terminated > 1).any():
        yield "an episode is terminated before its last transition"
    returns = np.add.reduceat(reward, index["start"])
    size = np.add.reduceat(np.abs(reward), index["start"])
    wrong = np.abs(returns - index["return"]) > SUM_TOLERANCE * (1 + size)
    if wrong.any():
        yield f"the return of episode {int(index['id'][wrong][0])} is not the sum of its rewards"
    sums.episodes += len(final)
    sums.transitions += int(index["length"].sum())
    sums.reward += float(reward.sum())
    sums.reward_square += float(np.square(reward).sum())
    sums.reward_size += float(size.sum())


def _compare(task: TaskRecord, sums: _Sums) -> Iterator[str]:
    if (sums.episodes, sums.transitions) != (task.episodes, task.transitions):
        yield (
            f"task {task.name}: {task.episodes} episodes and {task.transitions} transitions, the files hold "
            f"{sums.episodes} and {sums.transitions}"
        )
    if abs(sums.reward - task.reward_sum) > SUM_TOLERANCE * (1 + sums.reward_size):
        yield f"task {task.name}: reward_sum {task.reward_sum}, the files hold {sums.reward}"
    if abs(sums.reward_square - task.reward_square_sum) > SUM_TOLERANCE * (1 + sums.reward_square):
        yield f"task {task.name}: reward_square_sum {task.reward_square_sum}, the files hold {sums.reward_square}"
