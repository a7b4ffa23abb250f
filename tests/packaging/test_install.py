"""Set-up on a machine without a GPU refuses to pull CUDA packages, before it downloads them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

# Stands in for the environment's python: records what pip is asked to do, and answers its dry run.
FAKE_PYTHON = """#!{python}
import json, os, subprocess, sys

arguments = sys.argv[1:]
with open({log!r}, "a") as log:
    log.write(json.dumps(arguments) + "\\n")
if arguments[:1] == ["-c"]:
    sys.exit(subprocess.run([{python!r}, *arguments]).returncode)
if "--dry-run" in arguments:
    names = os.environ["FAKE_RESOLVED"].split()
    print(json.dumps({{"install": [{{"metadata": {{"name": name}}}} for name in names]}}))
if arguments[:3] == ["-m", "pip", "list"]:
    print(os.environ.get("FAKE_INSTALLED", ""))
"""


@pytest.fixture
def machine(repository: Path, tmp_path: Path) -> Path:
    """A copy of the set-up script beside a made-up environment `.venv`."""
    (tmp_path / ".ci").mkdir()
    shutil.copy(repository / ".ci" / "install", tmp_path / ".ci" / "install")
    shutil.copy(repository / "constraints.txt", tmp_path / "constraints.txt")
    python = tmp_path / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(FAKE_PYTHON.format(python=sys.executable, log=str(tmp_path / "log")))
    python.chmod(0o755)
    return tmp_path


def install(machine: Path, **environment: str) -> tuple[subprocess.CompletedProcess[str], list[list[str]]]:
    """Runs the set-up; returns its outcome and the pip calls it made."""
    kept = {name: value for name, value in os.environ.items() if name not in ("TORCH_INDEX", "ALLOW_CUDA", "PYTHON")}
    done = subprocess.run(
        ["bash", str(machine / ".ci" / "install"), ".venv"],
        env={**kept, **environment},
        capture_output=True,
        text=True,
        timeout=60,
    )
    calls = [json.loads(line) for line in (machine / "log").read_text().splitlines()]
    return done, [call for call in calls if call[:3] == ["-m", "pip", "install"]]


needs_no_gpu = pytest.mark.skipif(
    Path("/dev/nvidia0").exists() or shutil.which("nvidia-smi") is not None, reason="about machines without a GPU"
)


@needs_no_gpu
def test_cuda_packages_are_refused_before_anything_is_installed(machine: Path) -> None:
    done, calls = install(machine, FAKE_RESOLVED="torch nvidia-cublas nvidia-cudnn-cu13 sympy")
    assert done.returncode == 1
    assert "2 CUDA packages" in done.stderr
    assert "TORCH_INDEX" in done.stderr and "ALLOW_CUDA" in done.stderr
    assert not any("--editable" in call for call in calls)


@needs_no_gpu
def test_cpu_build_is_installed_at_the_pinned_versions(machine: Path) -> None:
    done, calls = install(machine, FAKE_RESOLVED="torch sympy")
    assert done.returncode == 0, done.stderr
    (editable,) = [call for call in calls if "--editable" in call]
    assert editable[-2:] == ["-c", "constraints.txt"]


def test_torch_index_is_asked_for_torch_alone(machine: Path) -> None:
    done, calls = install(machine, FAKE_RESOLVED="", TORCH_INDEX="https://example.org/cpu")
    assert done.returncode == 0, done.stderr
    (from_index,) = [call for call in calls if "https://example.org/cpu" in call]
    assert from_index[-1] == "torch==2.13.0" and "--no-deps" in from_index
    assert not any("--dry-run" in call for call in calls)


def test_cuda_packages_are_accepted_when_asked_for(machine: Path) -> None:
    done, calls = install(
        machine, FAKE_RESOLVED="torch nvidia-cublas", FAKE_INSTALLED="nvidia-cublas==13", ALLOW_CUDA="1"
    )
    assert done.returncode == 0, done.stderr
    assert any("--editable" in call for call in calls)


@needs_no_gpu
def test_cuda_packages_that_came_in_all_the_same_fail_the_set_up(machine: Path) -> None:
    done, _ = install(machine, FAKE_RESOLVED="torch", FAKE_INSTALLED="nvidia-cublas==13.0")
    assert done.returncode == 1
    assert "CUDA packages are in .venv" in done.stderr
