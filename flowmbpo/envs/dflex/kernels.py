"""dflex compiles its kernels in its first import, for minutes: once, however many processes start.

torch guards such a build with a file `lock` in the build's folder, which a killed build leaves behind
and on which every later import then waits for ever. Our own lock is the kernel's (`flock`), which
dies with its process; a `lock` that is there while we hold ours was left behind.
"""

from __future__ import annotations

import fcntl
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from flowmbpo.errors import EnvironmentUnavailableError

log = logging.getLogger("flowmbpo")

OUR_LOCK = "flowmbpo.lock"
STAMP = "flowmbpo.built"
TORCH_LOCK = "lock"
SOURCE_CACHE = "adjoint.gen"
"""What dflex compiled last; where it is missing, dflex builds (and ninja compiles what has changed)."""

T = TypeVar("T")


def load_built(package: Path, wanted: str, load: Callable[[], T]) -> T:
    """`load()`, which imports dflex from the folder `package`, alone among all processes if it may compile.

    `wanted` names what the kernels are built for (torch, Python, CUDA). Where they were built for
    just that, and no source is newer, nothing is locked or written. Raises
    EnvironmentUnavailableError where the kernels must be compiled and the folder is not writable.
    """
    folder = package / "kernels"
    if _is_built(package, wanted):
        return load()
    place = folder if folder.is_dir() else package
    if not os.access(place, os.W_OK | os.X_OK):
        raise EnvironmentUnavailableError(
            f"dflex must compile its kernels into {folder}, and {place} is not writable. Import it once as a user who "
            "may write there, with the same torch and the same kind of machine (with or without CUDA), or install "
            "dflex into an environment of your own."
        )
    folder.mkdir(exist_ok=True)
    with _exclusive(folder):
        if _is_built(package, wanted):  # by the process that we waited for
            return load()
        # What an older or a killed build left; only while our lock is held.
        for name in (STAMP, SOURCE_CACHE):
            (folder / name).unlink(missing_ok=True)
        stale = folder / TORCH_LOCK
        if stale.exists():
            log.warning("%s: removed, left behind by a build that was killed", stale)
            stale.unlink()
        log.warning("compiling dflex's kernels into %s: 1-4 minutes, once", folder)
        loaded = load()
        (folder / STAMP).write_text(wanted + "\n", encoding="utf-8")
        return loaded


def _is_built(package: Path, wanted: str) -> bool:
    """Whether the kernels were built for `wanted`, after the last change of dflex's sources."""
    stamp = package / "kernels" / STAMP
    if not (stamp.is_file() and (package / "kernels" / SOURCE_CACHE).is_file()):
        return False
    if stamp.read_text(encoding="utf-8").strip() != wanted:
        return False
    built = stamp.stat().st_mtime
    sources = [path for pattern in ("*.py", "*.h") for path in package.glob(pattern)]
    return all(path.stat().st_mtime <= built for path in sources)


@contextmanager
def _exclusive(folder: Path) -> Iterator[None]:
    """Hold our lock on `folder`, after waiting for whoever has it."""
    with (folder / OUR_LOCK).open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            log.warning("waiting for another process, which is compiling dflex's kernels into %s", folder)
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError as error:
            raise EnvironmentUnavailableError(
                f"{folder}: this file system has no locks ({error.strerror}), so that two processes could compile "
                "dflex's kernels at once. Install dflex into an environment on a local disk."
            ) from error
        yield
