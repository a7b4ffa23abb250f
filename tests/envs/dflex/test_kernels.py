"""The guarded first build: once, alone, and not stopped by what a killed build left behind."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from flowmbpo.envs.dflex import kernels as build
from flowmbpo.envs.dflex.kernels import OUR_LOCK, SOURCE_CACHE, STAMP, TORCH_LOCK, load_built
from flowmbpo.errors import EnvironmentUnavailableError

# A process that loads the package given: it compiles where dflex would (no cache), which takes a while.
LOADER = """
import os, sys, time
from pathlib import Path
from flowmbpo.envs.dflex.kernels import SOURCE_CACHE, load_built

package, journal, seconds = Path(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3])

def note(what):
    with journal.open("a") as file:
        file.write(what + "\\n")

def load():
    kernels = package / "kernels"
    if not (kernels / SOURCE_CACHE).exists():
        note("compile")
        (kernels / "lock").touch(exist_ok=False)
        time.sleep(seconds)
        (kernels / SOURCE_CACHE).write_text("source")
        (kernels / "lock").unlink()
        note("compiled")

load_built(package, "torch 1", load)
"""


@pytest.fixture
def package(tmp_path: Path) -> Path:
    folder = tmp_path / "package"
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    os.utime(folder / "__init__.py", (1, 1))
    return folder


class Loading:
    """Stands for dflex's import: compiles where its cache is missing, and counts."""

    def __init__(self, package: Path) -> None:
        self.kernels = package / "kernels"
        self.loads = self.compilations = 0

    def __call__(self) -> str:
        self.loads += 1
        assert not (self.kernels / TORCH_LOCK).exists(), "torch would wait for ever"
        if not (self.kernels / SOURCE_CACHE).exists():
            self.compilations += 1
            (self.kernels / SOURCE_CACHE).write_text("source")
        return "module"


def start_loader(package: Path, journal: Path, seconds: float) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", LOADER, str(package), str(journal), str(seconds)])


def test_only_the_first_import_compiles_and_says_so(package, caplog):
    load = Loading(package)
    assert load_built(package, "torch 1", load) == "module"
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert "1-4 minutes, once" in caplog.text
    (package / "kernels" / OUR_LOCK).unlink()
    assert load_built(package, "torch 1", load) == "module"
    assert (load.loads, load.compilations) == (2, 1)
    assert len(caplog.records) == 1
    assert not (package / "kernels" / OUR_LOCK).exists(), "kernels that are built need no lock"


def test_another_torch_compiles_again(package):
    load = Loading(package)
    load_built(package, "torch 1", load)
    load_built(package, "torch 2", load)
    assert load.compilations == 2


def test_a_newer_source_compiles_again(package):
    load = Loading(package)
    load_built(package, "torch 1", load)
    later = (package / "kernels" / STAMP).stat().st_mtime + 10
    os.utime(package / "__init__.py", (later, later))
    load_built(package, "torch 1", load)
    assert load.compilations == 2


def test_a_lock_left_by_a_killed_build_is_removed(package, caplog):
    (package / "kernels").mkdir()
    (package / "kernels" / TORCH_LOCK).touch()
    load_built(package, "torch 1", Loading(package))
    assert "left behind by a build that was killed" in caplog.text


def test_a_failed_build_leaves_no_stamp_and_no_lock(package):
    def fail() -> None:
        raise RuntimeError("no compiler")

    with pytest.raises(RuntimeError, match="no compiler"):
        load_built(package, "torch 1", fail)
    assert not (package / "kernels" / STAMP).exists()
    load = Loading(package)
    load_built(package, "torch 1", load)
    assert load.compilations == 1


def test_a_read_only_folder_is_refused_only_to_compile(package, monkeypatch):
    load = Loading(package)
    monkeypatch.setattr(build.os, "access", lambda path, mode: False)
    with pytest.raises(EnvironmentUnavailableError, match="not writable") as caught:
        load_built(package, "torch 1", load)
    assert str(package) in str(caught.value)
    monkeypatch.undo()
    load_built(package, "torch 1", load)
    monkeypatch.setattr(build.os, "access", lambda path, mode: False)
    assert load_built(package, "torch 1", load) == "module"


def test_a_file_system_without_locks_is_refused(package, monkeypatch):
    def refuse(descriptor: int, operation: int) -> None:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(build.fcntl, "flock", refuse)
    with pytest.raises(EnvironmentUnavailableError, match="no locks"):
        load_built(package, "torch 1", Loading(package))


def test_of_processes_that_start_at_once_one_compiles(package, tmp_path):
    journal = tmp_path / "journal"
    loaders = [start_loader(package, journal, 0.5) for _ in range(3)]
    assert [loader.wait(timeout=60) for loader in loaders] == [0, 0, 0]
    assert journal.read_text().split() == ["compile", "compiled"]


def test_after_a_build_was_killed_the_next_process_builds(package, tmp_path):
    journal = tmp_path / "journal"
    killed = start_loader(package, journal, 60.0)
    deadline = time.monotonic() + 30
    while not (package / "kernels" / TORCH_LOCK).exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert start_loader(package, journal, 0.0).wait(timeout=60) == 0
    assert journal.read_text().split() == ["compile", "compile", "compiled"]
