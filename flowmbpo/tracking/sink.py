"""What every destination of metrics is, and several of them as one. Imports no torch."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from types import TracebackType

Value = float | int | str
Row = Mapping[str, Value]


class MetricSink(ABC):
    """Takes one row per logged epoch; a row holds at least `epoch` and `env_steps`.

    Keys are those of metrics.jsonl (`eval/return_mean`, `loss/actor`, ...); a row states only what
    was measured in that epoch.
    """

    @abstractmethod
    def log(self, row: Row) -> None:
        """Take one row. Values are plain Python numbers and strings."""

    @abstractmethod
    def close(self, status: str) -> None:
        """Write out everything; `status` is the run's (done, interrupted, failed)."""

    def __enter__(self) -> MetricSink:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close("done" if error is None else "failed")


class MultiSink(MetricSink):
    """Passes every row to each sink in order; closing reaches all of them, whatever one raises."""

    def __init__(self, sinks: Sequence[MetricSink]) -> None:
        self._open = list(sinks)

    def log(self, row: Row) -> None:
        for sink in self._open:
            sink.log(row)

    def close(self, status: str) -> None:
        """Close the last opened first; safe to call twice, the first status counts."""
        if not self._open:
            return
        sink = self._open.pop()
        try:
            sink.close(status)
        finally:
            self.close(status)


def finite_numbers(row: Row) -> dict[str, float | int]:
    """The entries of `row` that can be drawn: finite numbers."""
    return {key: value for key, value in row.items() if not isinstance(value, str) and math.isfinite(value)}
