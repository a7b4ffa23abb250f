"""metrics.jsonl: one JSON object per line, appended and flushed. Imports no torch."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from flowmbpo.errors import DataError, RunDirectoryError
from flowmbpo.files import refused, write_bytes_atomic
from flowmbpo.tracking.sink import MetricSink, Row

NONFINITE = "nonfinite_keys"
FINAL = "final/return_mean"  # in the row of a run's final evaluation


class JsonlSink(MetricSink):
    """Appends to `path`. JSON has no NaN: such a value becomes null, its key joins `nonfinite_keys`.

    `resume_epoch`: the epoch of the checkpoint that the run goes on from; later rows will be
    measured again and are dropped. None starts a new file and refuses one that holds rows.

    Raises RunDirectoryError on a file that is already there, StorageError when the disk refuses.
    """

    def __init__(self, path: Path, resume_epoch: int | None = None) -> None:
        self.path = path
        if resume_epoch is not None:
            self.truncate_after(resume_epoch)
        elif path.exists() and path.stat().st_size:
            raise RunDirectoryError(f"{path}: already holds metrics. Continue with --resume, or choose another --out.")
        try:
            self._file = open(path, "a", encoding="utf-8")  # noqa: SIM115 (closed by `close`)
        except OSError as error:
            raise refused(path, error) from error

    def log(self, row: Row) -> None:
        try:
            self._file.write(json.dumps(without_nonfinite(row), allow_nan=False) + "\n")
            self._file.flush()
        except OSError as error:
            raise refused(self.path, error) from error

    def close(self, status: str) -> None:
        try:
            self._file.close()
        except OSError as error:
            raise refused(self.path, error) from error

    def truncate_after(self, epoch: int) -> None:
        """Drop rows beyond `epoch`, the earlier end's final evaluation, and a torn last line, in one step.

        Before anything is logged.
        """
        if not self.path.exists():
            return
        rows = [row for row in read_rows(self.path) if row.get("epoch", epoch) <= epoch and FINAL not in row]
        text = "".join(json.dumps(row, allow_nan=False) + "\n" for row in rows)
        write_bytes_atomic(self.path, text.encode())


def without_nonfinite(row: Row) -> dict[str, Any]:
    """`row` as JSON can hold it: non-finite numbers as null, listed under `nonfinite_keys`."""
    bad = [key for key, value in row.items() if isinstance(value, float) and not math.isfinite(value)]
    kept: dict[str, Any] = {key: None if key in bad else value for key, value in row.items()}
    return {**kept, NONFINITE: bad} if bad else kept


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
        try:
            row = json.loads(line)
        except ValueError as error:
            raise _damaged(path, number) from error
        if not isinstance(row, dict):
            raise _damaged(path, number)
        rows.append(row)
    return rows


def _damaged(path: Path, number: int) -> DataError:
    return DataError(f"{path}, line {number}: is not a JSON object: the file is damaged. Remove that line to go on.")
