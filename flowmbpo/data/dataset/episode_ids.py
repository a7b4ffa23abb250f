"""Which episode ids a dataset already holds, in memory that depends on gaps and not on episodes."""

from __future__ import annotations

from bisect import bisect_right

import numpy as np
import numpy.typing as npt


class EpisodeIds:
    """A set of ids as sorted, disjoint, half-open ranges; neighbouring ranges melt into one."""

    def __init__(self) -> None:
        self._first: list[int] = []
        self._end: list[int] = []

    @property
    def next_free(self) -> int:
        """One above the greatest id; 0 while there is none."""
        return max(0, self._end[-1]) if self._end else 0

    def add(self, ids: npt.NDArray[np.int64]) -> int | None:
        """Add all ids, or none: then returns one that was there already (or comes twice in `ids`)."""
        ordered = np.sort(ids)
        twice = np.flatnonzero(ordered[1:] == ordered[:-1])
        if twice.size:
            return int(ordered[twice[0]])
        cuts = np.flatnonzero(np.diff(ordered) != 1) + 1
        runs = [(int(run[0]), int(run[-1]) + 1) for run in np.split(ordered, cuts) if run.size]
        for first, end in runs:
            taken = self._overlap(first, end)
            if taken is not None:
                return taken
        for first, end in runs:
            self._insert(first, end)
        return None

    def _overlap(self, first: int, end: int) -> int | None:
        place = bisect_right(self._first, first)
        if place and self._end[place - 1] > first:
            return first
        if place < len(self._first) and self._first[place] < end:
            return self._first[place]
        return None

    def _insert(self, first: int, end: int) -> None:
        place = bisect_right(self._first, first)
        joins_left = place > 0 and self._end[place - 1] == first
        joins_right = place < len(self._first) and self._first[place] == end
        if joins_left and joins_right:
            self._end[place - 1] = self._end.pop(place)
            self._first.pop(place)
        elif joins_left:
            self._end[place - 1] = end
        elif joins_right:
            self._first[place] = first
        else:
            self._first.insert(place, first)
            self._end.insert(place, end)
