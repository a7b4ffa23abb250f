"""Tensors of a foreign torch archive, mapped from the file: only the rows that are asked for are ever in memory."""

from __future__ import annotations

import hashlib
import json
import math
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flowmbpo.data.convert import archive
from flowmbpo.errors import DataError


@dataclass(frozen=True)
class MappedTensor:
    """One tensor of a file, of any element type."""

    name: str
    letter: str
    values: NDArray[Any]

    @property
    def shape(self) -> tuple[int, ...]:
        """As stored."""
        return tuple(self.values.shape)

    @property
    def dtype(self) -> str:
        """The element type's name, as people write it."""
        return "bfloat16" if self.letter == "bf" else str(self.values.dtype)

    def float_rows(self, start: int, stop: int) -> NDArray[np.float32]:
        """Rows `start` to `stop` of the first dimension as float32, in memory."""
        rows = self.values[start:stop]
        if self.letter == "bf":  # the upper half of a float32
            return (rows.astype(np.uint32) << np.uint32(16)).view(np.float32)
        return np.array(rows, dtype=np.float32)


@dataclass(frozen=True)
class Archive:
    """The tensors of one file. `identity` is a SHA-256 over the names, sizes and checksums of its members."""

    path: Path
    size: int
    identity: str
    tensors: dict[str, MappedTensor]

    def need(self, *names: str) -> None:
        """Raises DataError unless it holds tensors of these names."""
        missing = [name for name in names if name not in self.tensors]
        if missing:
            raise DataError(
                f"{self.path}: has no {', '.join(missing)} (it holds {', '.join(self.tensors)}). "
                "`flowmbpo data where` says what the published files hold."
            )


def open_archive(path: Path, *, checksums: bool = False) -> Archive:
    """Read the list of tensors of `path` in an isolated process and map them.

    With `checksums` every tensor's bytes are held against the archive's CRC-32 first, which reads the whole file.
    Raises DataError on a file that is damaged, foreign, or refers to anything but tensors: nothing of it is run.
    """
    script = str(Path(archive.__file__))
    command = [sys.executable, "-I", "-S", script, str(path)] + (["--checksums"] if checksums else [])
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise DataError(f"{path}: reading its list of tensors failed (status {done.returncode}: {last})")
    document = json.loads(done.stdout)
    if "refused" in document:
        raise DataError(f"{path}: cannot be read: {document['refused']}.")
    try:
        mapped = np.memmap(path, dtype=np.uint8, mode="r")
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be mapped into memory: {error}.") from error
    tensors = {name: _mapped(name, entry, mapped) for name, entry in document["tensors"].items()}
    identity = hashlib.sha256(document["identity"].encode()).hexdigest()
    return Archive(path, mapped.size, identity, tensors)


def _mapped(name: str, entry: dict[str, Any], mapped: NDArray[np.uint8]) -> MappedTensor:
    letter = entry["dtype"]
    dtype = np.dtype("u2" if letter == "bf" else letter)
    shape = tuple(entry["shape"])
    if math.prod(shape) == 0:
        return MappedTensor(name, letter, np.empty(shape, dtype))
    # ndarray itself refuses places outside the buffer.
    values: NDArray[Any] = np.ndarray(shape, dtype, mapped.data, entry["offset"], tuple(entry["strides"]))
    return MappedTensor(name, letter, values)
