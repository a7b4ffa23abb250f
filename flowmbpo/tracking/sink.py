"""Destinations of metrics: what each is, several as one, metrics.jsonl, and TensorBoard's event files."""

from __future__ import annotations

import json
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

from flowmbpo.errors import ConfigError, DataError, RunDirectoryError
from flowmbpo.files import refused, write_bytes_atomic

Value = float | int | str
Row = Mapping[str, Value]

PARTS = {"loss": ("dynamics", "reward", "actor", "critic"), "grad_norm": ("model", "actor", "critic")}
"""What is shown of the losses and of the gradients, as `{group}/{part}`."""
NONFINITE = "nonfinite_keys"
FINAL = "final/return_mean"  # in the row of a run's final evaluation


class MetricSink(ABC):
    """Takes one row per logged epoch; a row holds at least `epoch`, `agent_steps` and `env_steps`.

    Keys are those of metrics.jsonl (`eval/return_mean`, `loss/actor`, ...); a row states only what
    was measured in that epoch.
    """

    @abstractmethod
    def log(self, row: Row) -> None:
        """Take one row. Values are plain Python numbers and strings."""

    @abstractmethod
    def close(self, status: str) -> None:
        """Write out everything; `status` is the run's (done, interrupted, failed)."""


class MultiSink(MetricSink):
    """Passes every row to each sink in order; closing reaches all of them, whatever one raises."""

    def __init__(self, sinks: Sequence[MetricSink]) -> None:
        self._open = list(sinks)

    def log(self, row: Row) -> None:
        for sink in self._open:
            sink.log(row)

    def close(self, status: str) -> None:
        """Close the last opened first; safe to call twice, the first status counts."""
        with ExitStack() as closing:
            for sink in self._open:
                closing.callback(sink.close, status)
            self._open = []


def finite_numbers(row: Row) -> dict[str, float | int]:
    """The entries of `row` that can be drawn: finite numbers."""
    return {key: value for key, value in row.items() if not isinstance(value, str) and math.isfinite(value)}


class JsonlSink(MetricSink):
    """Appends to `path`. JSON has no NaN: such a value becomes null, its key joins `nonfinite_keys`.

    `resume_epoch`: the epoch of the checkpoint that the run goes on from; later rows will be
    measured again and are dropped. None starts a new file and refuses one that holds rows.

    Raises RunDirectoryError on a file that is already there, StorageError when the disk refuses.
    """

    def __init__(self, path: Path, resume_epoch: int | None = None) -> None:
        self.path = path
        if path.exists() and resume_epoch is not None:  # what goes, goes in one step, also the run's earlier end
            kept = (row for row in read_rows(path) if row.get("epoch", 0) <= resume_epoch and FINAL not in row)
            write_bytes_atomic(path, "".join(json.dumps(row, allow_nan=False) + "\n" for row in kept).encode())
        elif path.exists() and path.stat().st_size:
            raise RunDirectoryError(f"{path}: already holds metrics. Continue with --resume, or choose another --out.")
        try:
            self._file = open(path, "a", encoding="utf-8")  # noqa: SIM115 (closed by `close`)
        except OSError as error:
            raise refused(path, error) from error

    def log(self, row: Row) -> None:
        bad = [key for key, value in row.items() if isinstance(value, float) and not math.isfinite(value)]
        kept: dict[str, Any] = {**row, **dict.fromkeys(bad)} | ({NONFINITE: bad} if bad else {})
        try:
            self._file.write(json.dumps(kept, allow_nan=False) + "\n")
            self._file.flush()
        except OSError as error:
            raise refused(self.path, error) from error

    def close(self, status: str) -> None:
        try:
            self._file.close()
        except OSError as error:
            raise refused(self.path, error) from error


def read_rows(path: Path) -> list[dict[str, Any]]:
    """All complete rows of a metrics file; a torn last line (a killed writer's) is left out.

    Raises DataError naming the line where any other line is not a JSON object, or without a file.
    """
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}. Name a run that has logged metrics.") from error
    rows = []
    for number, line in enumerate(lines[:-1], start=1):  # what follows the last newline is torn or empty
        row = None
        with suppress(ValueError):
            row = json.loads(line)
        if not isinstance(row, dict):
            raise DataError(
                f"{path}, line {number}: is not a JSON object: the file is damaged. Remove that line to go on."
            )
        rows.append(row)
    return rows


class TensorBoardSink(MetricSink):
    """Scalars over epochs under `folder`; on a resume TensorBoard hides what lay beyond `resume_epoch`.

    Raises ConfigError when TensorBoard is not installed.
    """

    def __init__(self, folder: Path, resume_epoch: int | None = None) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise ConfigError(
                "tracking.sinks: 'tensorboard' is not installed. Install it with `pip install tensorboard`, "
                "or use --track none."
            ) from error
        self._writer = SummaryWriter(str(folder), purge_step=None if resume_epoch is None else resume_epoch + 1)

    def log(self, row: Row) -> None:
        for key, value in finite_numbers(row).items():
            if key != "epoch":
                self._writer.add_scalar(key, value, int(row["epoch"]))

    def close(self, status: str) -> None:
        self._writer.close()
