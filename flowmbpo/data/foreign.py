"""Foreign torch files: tensors mapped from the disk, and nothing of their pickle run.

torch's restricted unpickler refuses every name outside its own list of tensors and plain values. The few others that
published files hold are replaced by inert stand-ins, so that nothing of tensordict (of any version) or of anything
else is called.
"""

from __future__ import annotations

import hashlib
import lzma
import pickle
import struct
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flowmbpo.errors import DataError

DIRECTORY = 0x10  # of a member's attributes
MOST_ENTRIES = 1 << 16  # a dictionary that holds another one twice, and so on, never ends

# All that zipfile and torch raise on damaged bytes; MemoryError comes of sizes that damage made huge.
_DAMAGED = (zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error, pickle.UnpicklingError, EOFError, OSError)
_SENSELESS = (AssertionError, MemoryError, OverflowError, RuntimeError, ValueError, LookupError, TypeError)
UNREADABLE = (*_DAMAGED, *_SENSELESS, AttributeError)


class ForeignFileError(Exception):
    """A foreign file that cannot be read; the message says why, without the file's name."""


class UnsafeFileError(ForeignFileError):
    """A file that asks for more than tensors and plain values. Nothing of it was run."""


def load_inert(path: Path, stand_ins: Mapping[str, Any]) -> Any:
    """What torch.save wrote to `path`: plain containers, numbers, and tensors, mapped where the format allows it.

    `stand_ins` replace what its pickle calls by these full names; they must do nothing that harms. Of an archive the
    checksums are not compared (`check_archive`). Raises ForeignFileError.
    """
    try:
        with _allowed(stand_ins):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        raise UnsafeFileError(_cause(error)) from error
    except UNREADABLE as error:
        if "resize storage" in str(error):
            raise ForeignFileError("a tensor in it is longer than its storage: damaged") from error
        raise ForeignFileError(_cause(error)) from error


@contextmanager
def _allowed(stand_ins: Mapping[str, Any]) -> Iterator[None]:
    """Only torch's own list and `stand_ins` may be named; what other packages allowed counts for nothing here."""
    others = torch.serialization.get_safe_globals()
    torch.serialization.clear_safe_globals()
    torch.serialization.add_safe_globals([(stand_in, name) for name, stand_in in stand_ins.items()])
    try:
        yield
    finally:
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals(others)


def check_archive(file: Path | BinaryIO, *, checksums: bool = True) -> str:
    """Look at an archive's directory and, with `checksums`, read all of it and compare its CRC-32.

    torch itself reads flipped bits without a word, packed bytes as numbers, and a member that is flagged as a directory
    as memory that was never written. Returns what identifies the archive: a SHA-256 over the names, sizes and checksums
    of its members. Raises ForeignFileError.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            members = archive.infolist()
            if len({member.filename for member in members}) < len(members):
                raise ForeignFileError("two of its members have the same name")
            for member in members:
                if member.compress_type != zipfile.ZIP_STORED or member.file_size != member.compress_size:
                    raise ForeignFileError(f"its member {member.filename} is compressed, which torch.save never does")
                if member.external_attr & DIRECTORY:
                    raise ForeignFileError(f"its member {member.filename} is flagged as a directory")
            broken = archive.testzip() if checksums else None
    except UNREADABLE as error:
        raise ForeignFileError(_cause(error)) from error
    if broken is not None:
        raise ForeignFileError(f"the checksum of its member {broken} is wrong: damaged; fetch it again")
    listing = "".join(f"{member.filename} {member.file_size} {member.CRC};" for member in members)
    return hashlib.sha256(listing.encode()).hexdigest()


def _cause(error: BaseException) -> str:
    """The part of torch's message that names the cause; the rest advises on unsafe loading."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    named = [line for line in lines if "GLOBAL" in line or "Unsupported" in line]
    chosen = (named or lines or [type(error).__name__])[0]
    return chosen.split(" Please ")[0].rstrip(".")


class _Collection:
    """Stands for a TensorDict of any version, and for its helpers: their state, and nothing that they could do."""

    state: dict[str, Any]

    def __new__(cls, *arguments: Any) -> _Collection:  # unpickling calls no __init__; `_make_td` is given the state
        made = super().__new__(cls)
        made.state = {}
        made.__setstate__(arguments)
        return made

    def __setstate__(self, state: Any) -> None:
        # Objects with __slots__ pickle as a pair: the dictionary, then the slots.
        for part in state if isinstance(state, tuple) else (state,):
            if isinstance(part, dict):
                self.state.update(part)


_TENSORDICT = {"tensordict.utils._StringOnlyDict": dict}


@dataclass(frozen=True)
class Archive:
    """The tensors of one file by their keys ("a.b" inside nested ones): only rows that are asked for are read."""

    path: Path
    size: int
    identity: str
    tensors: dict[str, Tensor]

    def need(self, *names: str) -> None:
        """Raises DataError unless it holds tensors of these names."""
        missing = [name for name in names if name not in self.tensors]
        if missing:
            raise DataError(
                f"{self.path}: has no {', '.join(missing)} (it holds {', '.join(self.tensors)}). "
                "`flowmbpo data where` says what the published files hold."
            )

    def floats(self, name: str, start: int, stop: int) -> NDArray[np.float32]:
        """Rows `start` to `stop` of the first dimension as float32, in memory of their own."""
        return self.tensors[name][start:stop].to(torch.float32, copy=True).numpy()

    def column(self, name: str) -> NDArray[Any]:
        """One number a row: a tensor [...] or [..., 1], which stays in the file."""
        values = self.tensors[name]
        return (values.float() if values.dtype == torch.bfloat16 else values).numpy()


def open_archive(path: Path, *, checksums: bool = False) -> Archive:
    """Map the tensors of a saved TensorDict (of any version), or of a dictionary of tensors.

    With `checksums` the whole file is read once to compare them. Raises DataError on a file that is damaged, foreign,
    or refers to anything but tensors.
    """
    try:
        if path.is_file() and not zipfile.is_zipfile(path):
            raise ForeignFileError(
                "it is no complete torch archive: truncated, damaged, or saved in torch's old format (load and save it "
                "again with a current torch)"
            )
        identity = check_archive(path, checksums=checksums)
        tensors = dict(_leaves(_load_tensordict(path), "", iter(range(MOST_ENTRIES))))
        if not tensors:
            raise ForeignFileError("it holds no tensors under names")
    except ForeignFileError as error:
        raise DataError(f"{path}: cannot be read: {error}.") from error
    except RecursionError as error:
        raise DataError(f"{path}: cannot be read: it holds itself.") from error
    return Archive(path, path.stat().st_size, identity, tensors)


def _load_tensordict(path: Path) -> Any:
    try:
        with _allowed({}):
            unknown = sorted(torch.serialization.get_unsafe_globals_in_checkpoint(path))
    except UNREADABLE as error:
        raise ForeignFileError(f"its list of tensors cannot be read ({_cause(error)})") from error
    foreign = [name for name in unknown if name.partition(".")[0] != "tensordict"]
    if foreign:
        raise UnsafeFileError(
            f"it refers to {', '.join(foreign)}, which is no part of a file of tensors. Nothing of it was run; "
            "do not load this file with anything else either, unless you trust who made it"
        )
    return load_inert(path, {name: _TENSORDICT.get(name, _Collection) for name in unknown})


def _leaves(content: Any, prefix: str, budget: Iterator[int]) -> Iterator[tuple[str, Tensor]]:
    """The tensors of a TensorDict, or of a plain dictionary of tensors; of `budget` one is spent on every entry."""
    entries = content.state.get("_tensordict", {}) if isinstance(content, _Collection) else content
    if not isinstance(entries, dict):
        raise ForeignFileError(f"it holds a {type(content).__name__}, no TensorDict")
    for name, value in entries.items():
        if next(budget, None) is None:
            raise ForeignFileError(f"it nests more than {MOST_ENTRIES} entries")
        if isinstance(value, Tensor):
            if value.layout != torch.strided or value.is_complex() or value.is_quantized or value.is_meta:
                raise ForeignFileError(f"the tensor '{prefix}{name}' is of a kind that no published set has")
            yield f"{prefix}{name}", value.detach()
        elif isinstance(value, _Collection | dict):
            yield from _leaves(value, f"{prefix}{name}.", budget)
