"""How a task's data is cut: blocks of whole episodes, and groups of blocks that memory holds at once."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from flowmbpo.data.dataset.reader import Dataset
from flowmbpo.data.dataset.shard import read_lengths, row_starts

BLOCK_ROWS = 4096  # as much as one compressed chunk holds: reading less costs the same
FINAL_BYTES = 4  # per row: the final row of its episode, int32
WINDOW_BYTES = 8  # per window: its place in the order of two passes, int32
Int64s = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Blocks:
    """K blocks of one task, each a run of whole episodes of one shard. Windows start at `starts` of their rows."""

    shard: Int64s  # [K]
    first_row: Int64s  # [K], in the shard
    rows: Int64s  # [K]
    first_episode: Int64s  # [K], in the shard
    episodes: Int64s  # [K]
    starts: Int64s  # [K], windows
    row_bytes: int
    short_episodes: int  # with fewer transitions than a window

    @property
    def bytes(self) -> Int64s:
        """[K]: memory of each block with its windows."""
        return self.rows * self.row_bytes + self.starts * WINDOW_BYTES


def window_starts(length: Int64s, horizon: int) -> Int64s:
    """[E]: windows of `horizon` transitions inside episodes of `length`; a shorter episode gives one, padded."""
    return np.maximum(length - horizon, 0) + 1


def cut_blocks(dataset: Dataset, task: int, horizon: int) -> Blocks:
    """The blocks of a task. Raises DataError where an index cannot be read."""
    record = dataset.tasks[task]
    columns: dict[str, list[Int64s]] = {
        name: [] for name in ("shard", "first_row", "rows", "first_episode", "episodes", "starts")
    }
    short = 0
    for shard, path in enumerate(dataset.shard_paths(task)):
        length = read_lengths(path)
        start = row_starts(length)
        # An episode belongs to the block that its first row falls into.
        first = np.flatnonzero(np.diff(start // BLOCK_ROWS, prepend=-1))
        columns["shard"].append(np.full(len(first), shard))
        columns["first_row"].append(start[first])
        columns["rows"].append(np.add.reduceat(length + 1, first))
        columns["first_episode"].append(first)
        columns["episodes"].append(np.diff(first, append=len(length)))
        columns["starts"].append(np.add.reduceat(window_starts(length, horizon), first))
        short += int((length < horizon).sum())
    row_bytes = 4 * (record.obs_dim + record.action_dim + 1) + 1 + FINAL_BYTES
    return Blocks(
        **{name: np.concatenate(parts) for name, parts in columns.items()}, row_bytes=row_bytes, short_episodes=short
    )


def share_memory(needs: Int64s, memory: int) -> Int64s:
    """[n]: bytes for each task: what it needs where an equal share is more, which leaves more for the others."""
    shares = np.zeros(len(needs), np.int64)
    left = memory
    for position, task in enumerate(np.argsort(needs, kind="stable")):
        shares[task] = min(int(needs[task]), left // (len(needs) - position))
        left -= int(shares[task])
    return shares


def least_memory(blocks: Blocks) -> int:
    """Bytes without which a task cannot be read: all of it, or two of its largest blocks."""
    return min(int(blocks.bytes.sum()), 2 * int(blocks.bytes.max()))


def cut_groups(order: Int64s, blocks: Blocks, share: int) -> list[Int64s]:
    """`order` [K] in consecutive groups of which two fit into `share` bytes; one group if everything does.

    Groups are about equally large. `share` is at least `least_memory`.
    """
    size = blocks.bytes[order]
    total, largest = int(size.sum()), int(size.max())
    if total <= share:
        return [order]
    # Cutting at even distances misses the mark by up to a block.
    count = min(-(-total // max(share // 2 - largest, 1)), len(order))
    ends = np.cumsum(size)
    if count == len(order):
        return np.split(order, np.arange(1, count))
    cuts = np.searchsorted(ends, np.arange(1, count) * (total / count), side="right")
    return [group for group in np.split(order, cuts) if len(group)]
