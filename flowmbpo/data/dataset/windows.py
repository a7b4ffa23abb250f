"""One task's endless sequence of windows, computed from the number of the draw alone."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from concurrent.futures import Executor, Future
from functools import lru_cache
from operator import attrgetter
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from flowmbpo.data.dataset.format import read_index, row_starts
from flowmbpo.data.dataset.reader import Dataset, RowArrays

BLOCK_ROWS = 4096  # as much as one compressed chunk holds: reading less costs the same
WINDOW_BYTES = 8  # per window: its place in the order of two passes, int32
MAX_ROWS = 2**31 - 1  # of a group: rows are counted in int32
Int32s = npt.NDArray[np.int32]
Int64s = npt.NDArray[np.int64]

BLOCK = np.dtype([(name, "<i8") for name in ("shard", "first_row", "rows", "starts")])
"""A run of whole episodes of one shard: where it begins and how much it holds; windows begin at `starts` rows."""


def cut_blocks(dataset: Dataset, task: int, horizon: int) -> tuple[npt.NDArray[Any], list[Int32s]]:
    """The blocks of a task, BLOCK [K], and the lengths of each one's episodes. Raises DataError."""
    parts, lengths = [], list[Int32s]()
    for shard, path in enumerate(dataset.shard_paths(task)):
        length = read_index(path, "length")["length"]
        start = row_starts(length)
        # An episode belongs to the block that its first row falls into.
        first = np.flatnonzero(np.diff(start // BLOCK_ROWS, prepend=-1))
        part = np.empty(len(first), BLOCK)
        part["shard"] = shard
        part["first_row"] = start[first]
        part["rows"] = np.add.reduceat(length + 1, first)
        part["starts"] = np.add.reduceat(_window_starts(length, horizon), first)
        parts.append(part)
        lengths += np.split(length.astype(np.int32), first[1:])
    return np.concatenate(parts), lengths


def _window_starts(length: Int64s, horizon: int) -> Int64s:
    """[E]: windows of `horizon` transitions inside episodes of `length`; a shorter episode gives one, padded."""
    return np.maximum(length - horizon, 0) + 1


class Group(NamedTuple):
    """Draws `begin` to before `end` of a task come from these blocks: group `number` of pass `pass_`."""

    pass_: int
    number: int
    blocks: Int64s
    begin: int
    end: int


class LoadedGroup(NamedTuple):
    """A group in memory: its windows in the order in which they are dealt."""

    rows: RowArrays  # [R]
    final: Int32s  # [R], row of the final observation of the row's episode
    first: Int32s  # [S], row of the window's first observation


class TaskWindows:
    """One task's windows, each once in every pass: blocks are permuted and grouped, windows permuted in groups.

    A task that fits into its share of memory as a whole is one group, shuffled perfectly.
    Two groups at most are in memory (`loaded`): the one that is dealt, and the one after it.
    """

    def __init__(self, dataset: Dataset, task: int, *, horizon: int, seed: int, spec_id: int) -> None:
        """`task` is the dataset's id and `spec_id` the run's. Set `share` before anything is loaded."""
        self.dataset, self.task, self.spec_id = dataset, task, spec_id
        self.blocks, self._lengths = cut_blocks(dataset, task, horizon)
        self.starts = int(self.blocks["starts"].sum())  # windows in a pass
        record = dataset.tasks[task]
        self._row_bytes = 4 * (record.obs_dim + record.action_dim + 1) + 1 + 4  # the last: the row's final one, int32
        self._block_bytes: Int64s = self.blocks["rows"] * self._row_bytes + self.blocks["starts"] * WINDOW_BYTES  # [K]
        self.bytes = int(self._block_bytes.sum())
        # Without which the task cannot be read: all of it, or two of its largest blocks.
        self.least_bytes = min(self.bytes, 2 * int(self._block_bytes.max()))
        self.most_bytes = MAX_ROWS * self._row_bytes
        self.share = 0  # bytes, at most `most_bytes`, which hold two groups, or all
        self.loaded: dict[int, Future[LoadedGroup]] = {}
        self.groups = lru_cache(maxsize=2)(self._cut_groups)
        self._horizon, self._seed = horizon, seed
        self._whole: tuple[RowArrays, Int32s, Int64s] | None = None

    def _cut_groups(self, pass_: int) -> list[Group]:
        """The groups of a pass, about equally large: two of them fit into the room; one group if all blocks do."""
        count, largest = len(self.blocks), int(self._block_bytes.max())
        if self.bytes <= self.share:
            parts = [np.arange(count)]  # loaded once, so that the order must not depend on the pass
        else:
            order = self._rng(pass_, -1).permutation(count)
            # Cutting at even distances misses the mark by up to a block.
            groups = min(-(-self.bytes // max(self.share // 2 - largest, 1)), count)
            marks = np.arange(1, groups) * (self.bytes / groups)
            even = np.searchsorted(np.cumsum(self._block_bytes[order]), marks, side="right")
            parts = np.split(order, np.arange(1, count) if groups == count else even)
        held = [blocks for blocks in parts if len(blocks)]
        counts = np.array([self.blocks["starts"][blocks].sum() for blocks in held])
        ends = pass_ * self.starts + np.cumsum(counts)
        spans = zip((ends - counts).tolist(), ends.tolist(), strict=True)
        return [Group(pass_, number, held[number], *span) for number, span in enumerate(spans)]

    def group(self, draw: int) -> Group:
        """The group in which a draw lies."""
        groups = self.groups(draw // self.starts)
        return groups[bisect_right(groups, draw, key=attrgetter("end"))]

    def split(self, draws: Int64s) -> Iterator[tuple[Group, slice]]:
        """Which group each of some consecutive draws comes from: runs of them."""
        begin = 0
        while begin < len(draws):
            group = self.group(int(draws[begin]))
            end = min(len(draws), begin + group.end - int(draws[begin]))
            yield group, slice(begin, end)
            begin = end

    def load(self, group: Group, reader: Executor) -> Future[LoadedGroup]:
        """Have a group read (one at a time for all tasks: `reader` has one thread), unless it is there."""
        if group.begin not in self.loaded:
            self.loaded[group.begin] = reader.submit(self._load, group)
        return self.loaded[group.begin]

    def release(self, group: Group) -> None:
        """Forget what comes before a group."""
        self.loaded = {begin: value for begin, value in self.loaded.items() if begin >= group.begin}

    def drop(self) -> None:
        """Forget everything that is loaded or about to be."""
        for future in self.loaded.values():
            future.cancel()
        self.loaded.clear()

    def _load(self, group: Group) -> LoadedGroup:
        rows, final, length = self._whole or self._read(group.blocks)
        if self.bytes <= self.share:
            self._whole = rows, final, length
        counts = _window_starts(length, self._horizon)
        # In int32 and in place: these arrays are a good part of what a narrow task takes.
        first = np.arange(int(counts.sum()), dtype=np.int32)
        gaps = np.cumsum(length + 1 - counts) - (length + 1 - counts)
        first += np.repeat(gaps.astype(np.int32), counts)
        self._rng(group.pass_, group.number).shuffle(first)
        return LoadedGroup(rows, final, first)

    def _read(self, group: Int64s) -> tuple[RowArrays, Int32s, Int64s]:
        """Rows [R] of whole episodes, the row of each one's final observation [R], and lengths [E]."""
        group = np.sort(group)  # by their place on the disk; what is dealt is shuffled anyway
        blocks = self.blocks[group]
        rows = RowArrays.allocate(int(blocks["rows"].sum()), self.dataset.tasks[self.task])
        to = np.cumsum(blocks["rows"]) - blocks["rows"]
        for shard in np.unique(blocks["shard"]).tolist():
            here = blocks["shard"] == shard
            first, end = blocks["first_row"][here], (blocks["first_row"] + blocks["rows"])[here]
            spans = zip(first.tolist(), end.tolist(), to[here].tolist(), strict=True)
            self.dataset.read_rows(self.task, shard, spans, rows)
        length = np.concatenate([self._lengths[block] for block in group]).astype(np.int64)
        final = np.repeat((np.cumsum(length + 1) - 1).astype(np.int32), length + 1)
        return rows, final, length

    def _rng(self, pass_: int, group: int) -> np.random.Generator:
        seeds = np.random.SeedSequence((self._seed, self.spec_id, pass_, group + 1))
        return np.random.Generator(np.random.PCG64(seeds))
