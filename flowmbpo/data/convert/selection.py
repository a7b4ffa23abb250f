"""Which episodes of a task are kept where only some are wanted."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Int
from numpy.typing import NDArray


class Selection:
    """At most `limit` episodes of each task, spread evenly over all that there are, none twice.

    Published sets are replay buffers in the order of training: the first N of a task would be its worst. With T
    episodes of a task, occurrence k is kept where floor((k + 1) N / T) > floor(k N / T).
    """

    def __init__(self, limit: int | None, totals: Sequence[int], seen: Sequence[int] | None = None) -> None:
        self._limit = limit
        self._totals = list(totals)
        self._seen = [0] * len(self._totals) if seen is None else list(seen)

    @property
    def seen(self) -> list[int]:
        """Episodes of each task so far, kept or not: what it takes to go on from here."""
        return list(self._seen)

    def choose(self, tasks: Int[NDArray[np.int64], " E"]) -> Bool[NDArray[np.bool_], " E"]:
        """Which of the next episodes, whose tasks are given, are kept."""
        kept = np.ones(len(tasks), dtype=np.bool_)
        if self._limit is None:
            return kept
        for task in np.unique(tasks).tolist():
            places = np.flatnonzero(tasks == task)
            total = self._totals[task]
            if total > self._limit:
                number = self._seen[task] + np.arange(len(places) + 1, dtype=np.int64)
                kept[places] = np.diff(number * self._limit // total) > 0
            self._seen[task] += len(places)
        return kept
