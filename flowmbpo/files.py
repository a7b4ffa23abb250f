"""Files that are either wholly old or wholly new, whenever the process dies."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
from pathlib import Path
from types import TracebackType

from flowmbpo.errors import StorageError

TEMPORARY_SUFFIX = ".partial"
_NO_FOLDER_SYNC = (errno.EINVAL, errno.ENOTSUP)  # what some network file systems answer

_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class StagedFile:
    """A new version of `path`, written beside it and hashed on the way; `commit` puts it in place.

    Leaving the block without a commit removes the new version and leaves the old one untouched.
    A write that the disk refuses is remembered and raised by `finish`, not inside `write`:
    torch's zip writer turns an exception there into an unrelated message of its own.

    Raises StorageError when the disk refuses.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.committed = False  # whether the new version stands in place of the old one
        self.temporary = path.with_name(f".{path.name}.{os.getpid()}{TEMPORARY_SUFFIX}")
        self.size = 0
        self._digest = hashlib.sha256()
        self._failure: OSError | None = None

    @property
    def sha256(self) -> str:
        """Hex digest of what was written so far."""
        return self._digest.hexdigest()

    def __enter__(self) -> StagedFile:
        try:
            self._file = open(self.temporary, "wb")
        except OSError as error:
            raise refused(self.path, error) from error
        return self

    def write(self, data: bytes | bytearray | memoryview) -> int:
        """Append `data`; always answers its full length (see the class)."""
        length = memoryview(data).nbytes
        if self._failure is None:
            try:
                self._file.write(data)
                self._digest.update(data)
                self.size += length
            except OSError as error:
                self._failure = error
        return length

    def flush(self) -> None:
        """Part of the file interface that writers call; `finish` is what makes data durable."""

    def finish(self) -> None:
        """Bring everything to the disk. The new version is then complete, not yet in place."""
        if self._failure is not None:
            raise self._failure
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()

    def commit(self) -> None:
        """Put the new version in place of the old one, in one step that survives a power cut."""
        if not self._file.closed:
            self.finish()
        os.replace(self.temporary, self.path)
        self.committed = True
        sync_folder(self.path.parent)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self.committed:
            self._discard()
        failure = error if isinstance(error, OSError) else self._failure
        if failure is not None:
            raise refused(self.path, failure) from failure

    def _discard(self) -> None:
        try:
            self._file.close()  # flushes, so a full disk may refuse here once more
        except OSError as error:
            self._failure = self._failure or error
        self.temporary.unlink(missing_ok=True)


def write_bytes_atomic(path: Path, data: bytes) -> str:
    """Replace `path` by `data` in one step; its SHA-256. Raises StorageError; the old file then remains."""
    with StagedFile(path) as staged:
        staged.write(data)
        staged.commit()
    return staged.sha256


def sync_folder(folder: Path) -> None:
    """Make renames and removals in `folder` durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _NO_FOLDER_SYNC:
            raise
    finally:
        os.close(descriptor)


def remove_leftovers(folder: Path) -> None:
    """Delete what writers that were killed left in `folder`. Only for the folder's one owner."""
    for leftover in folder.glob(f".*{TEMPORARY_SUFFIX}"):
        leftover.unlink(missing_ok=True)


def refused(path: Path, error: OSError) -> StorageError:
    """The error for people when the disk refuses to write `path`."""
    kept = "What it held before is kept. " if path.exists() else ""
    if error.errno in _NO_SPACE:
        room = f"Free some space or choose another disk{_free_space(path)}"
        advice = f"{room}; then repeat the command (a run: with --resume)."
    else:
        advice = "Check that its folder exists and may be written."
    return StorageError(f"{path}: cannot be written: {error.strerror or error}. {kept}{advice}")


def _free_space(path: Path) -> str:
    try:
        free = shutil.disk_usage(path.parent).free
    except OSError:
        return ""
    return f" ({free / 2**20:.0f} MB are free in {path.parent})"
