"""The endless sequence of windows of one task, computed from the number of the draw alone."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from flowmbpo.data.dataset.blocks import Blocks, cut_groups, window_starts
from flowmbpo.data.dataset.reader import Dataset, RowArrays
from flowmbpo.data.dataset.shard import read_lengths

Int32s = npt.NDArray[np.int32]
Int64s = npt.NDArray[np.int64]
MAX_ROWS = 2**31 - 1  # of a group: rows are counted in int32


@dataclass(frozen=True)
class EpisodeRows:
    """Whole episodes in memory, one after another: E episodes in R rows."""

    rows: RowArrays
    final: Int32s  # [R], row of the final observation of the row's episode
    length: Int64s  # [E], transitions


@dataclass(frozen=True)
class Portion:
    """The windows of a group in the order in which they are dealt."""

    rows: RowArrays
    final: Int32s  # [R], see EpisodeRows
    first: Int32s  # [S], row of the window's first observation


@dataclass(frozen=True)
class Stretch:
    """Draws `begin` to before `end` of a task come from group `group` of pass `lap`, which has these blocks."""

    lap: int
    group: int
    blocks: Int64s
    begin: int
    end: int


class TaskStream:
    """One task's windows, each once in every pass: blocks are permuted and grouped, windows permuted in groups."""

    def __init__(
        self, dataset: Dataset, task: int, blocks: Blocks, *, horizon: int, share: int, seed: tuple[int, ...]
    ) -> None:
        """`task` is the dataset's id; `share` bytes hold two groups or all; `seed` is this task's own."""
        self.dataset = dataset
        self.task = task
        self.blocks = blocks
        self.horizon = horizon
        self.share = min(share, MAX_ROWS * blocks.row_bytes)
        self.seed = seed
        self.starts = int(blocks.starts.sum())  # windows in a pass
        self._whole: EpisodeRows | None = None
        self._laps: dict[int, list[Int64s]] = {}

    @property
    def resident(self) -> bool:
        """Whether all of the task stays in memory."""
        return int(self.blocks.bytes.sum()) <= self.share

    def groups(self, lap: int) -> list[Int64s]:
        """The blocks of each group of a pass."""
        if lap not in self._laps:
            # Resident data are loaded once, so their order on loading must not depend on the pass.
            order = (
                np.arange(len(self.blocks.rows))
                if self.resident
                else self._rng(lap, -1).permutation(len(self.blocks.rows))
            )
            self._laps = {known: groups for known, groups in self._laps.items() if known >= lap - 1}
            self._laps[lap] = cut_groups(order, self.blocks, self.share)
        return self._laps[lap]

    def stretch(self, draw: int) -> Stretch:
        """The stretch in which a draw lies."""
        lap, rest = divmod(draw, self.starts)
        ends = np.cumsum([self.blocks.starts[group].sum() for group in self.groups(lap)])
        group = int(np.searchsorted(ends, rest, side="right"))
        begin = int(ends[group - 1]) if group else 0
        blocks = self.groups(lap)[group]
        return Stretch(lap, group, blocks, lap * self.starts + begin, lap * self.starts + int(ends[group]))

    def load(self, stretch: Stretch) -> Portion:
        """Read and shuffle the group of a stretch; not from two threads at once. Raises DataError."""
        held = self._read(stretch.blocks) if self._whole is None else self._whole
        if self.resident:
            self._whole = held
        counts = window_starts(held.length, self.horizon)
        # In int32 and in place: these arrays are a good part of what a narrow task takes.
        first = np.arange(int(counts.sum()), dtype=np.int32)
        gaps = np.cumsum(held.length + 1 - counts) - (held.length + 1 - counts)
        first += np.repeat(gaps.astype(np.int32), counts)
        self._rng(stretch.lap, stretch.group).shuffle(first)
        return Portion(held.rows, held.final, first)

    def _read(self, group: Int64s) -> EpisodeRows:
        blocks = self.blocks
        # By their place on the disk; what is dealt is shuffled anyway.
        group = group[np.lexsort((blocks.first_row[group], blocks.shard[group]))]
        rows = RowArrays.allocate(int(blocks.rows[group].sum()), self.dataset.tasks[self.task])
        to = np.cumsum(blocks.rows[group]) - blocks.rows[group]
        length: list[Int64s] = []
        for shard in np.unique(blocks.shard[group]):
            here = np.flatnonzero(blocks.shard[group] == shard)
            first, end = blocks.first_row[group[here]], blocks.first_row[group[here]] + blocks.rows[group[here]]
            spans = zip(first.tolist(), end.tolist(), to[here].tolist(), strict=True)
            self.dataset.read_rows(self.task, int(shard), spans, rows)
            known = read_lengths(self.dataset.shard_paths(self.task)[shard])
            episode, count = blocks.first_episode[group[here]], blocks.episodes[group[here]]
            length += [known[e : e + n] for e, n in zip(episode, count, strict=True)]
        lengths = np.concatenate(length)
        final = np.repeat((np.cumsum(lengths + 1) - 1).astype(np.int32), lengths + 1)
        return EpisodeRows(rows, final, lengths)

    def _rng(self, lap: int, group: int) -> np.random.Generator:
        return np.random.Generator(np.random.PCG64(np.random.SeedSequence((*self.seed, lap, group + 1))))
