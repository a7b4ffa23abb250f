"""Wall-clock and CPU time of training alone: evaluation is timed and taken out."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class TrainingClock:
    """`wall_s` and `cpu_s` of training, summed over resumes; `others` tells the CPU seconds of other processes."""

    def __init__(self, others: Callable[[], float], wall_s: float = 0.0, cpu_s: float = 0.0) -> None:
        self._others = others
        self._wall = wall_s - time.monotonic()
        self._cpu = cpu_s - self._cpu_now()

    @property
    def wall_s(self) -> float:
        """Seconds on the wall, without pauses."""
        return self._wall + time.monotonic()

    @property
    def cpu_s(self) -> float:
        """CPU seconds of this process (all threads) and the environment's workers, without pauses."""
        return self._cpu + self._cpu_now()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """What happens inside counts as nothing."""
        wall, cpu = time.monotonic(), self._cpu_now()
        try:
            yield
        finally:
            self._wall -= time.monotonic() - wall
            self._cpu -= self._cpu_now() - cpu

    def _cpu_now(self) -> float:
        return time.process_time() + self._others()
