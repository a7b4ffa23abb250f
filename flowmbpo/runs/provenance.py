"""Where a run comes from: code, packages, machine, job. Imports no torch."""

from __future__ import annotations

import os
import platform
import shlex
import socket
import subprocess
import sys
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import flowmbpo

PACKAGES = ("torch", "numpy", "pydantic", "dm-control", "mujoco", "wandb", "tensorboard")
_SLURM = {"job_id": "SLURM_JOB_ID", "array_job_id": "SLURM_ARRAY_JOB_ID", "array_task_id": "SLURM_ARRAY_TASK_ID"}


def now() -> str:
    """The time in UTC, to the second: `2025-01-31T12:00:00Z`."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def provenance() -> dict[str, Any]:
    """Facts of this process for `run.json`: command, git, packages, python, host, pid, slurm."""
    return {
        "command": shlex.join(sys.argv),
        "git": git_state(Path(flowmbpo.__file__).parent),
        "packages": package_versions(),
        "python": platform.python_version(),
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "slurm": {key: os.environ[name] for key, name in _SLURM.items() if name in os.environ} or None,
    }


def package_versions() -> dict[str, str]:
    """Versions of this package and of those its results depend on; absent ones are left out."""
    versions = {"flowmbpo": flowmbpo.__version__}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


def git_state(folder: Path) -> dict[str, Any] | None:
    """Commit of the checkout that `folder` is tracked in, and whether `folder` differs from it.

    None outside a checkout, also for a package that is merely installed below one.
    """
    if _git(folder, "ls-files", "--error-unmatch", "__init__.py") is None:
        return None
    commit = _git(folder, "rev-parse", "HEAD")
    changes = _git(folder, "status", "--porcelain", "--", ".")
    if commit is None or changes is None:
        return None
    return {"commit": commit, "dirty": bool(changes)}


def _git(folder: Path, *arguments: str) -> str | None:
    command = ["git", "-C", str(folder), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
