"""The folder that one run owns: who holds it, what it did, where its files lie, where it comes from."""

from __future__ import annotations

import fcntl
import json
import os
import platform
import secrets
import shlex
import socket
import subprocess
import sys
import weakref
from contextlib import AbstractContextManager, suppress
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import flowmbpo
from flowmbpo.config.experiment import ExperimentConfig
from flowmbpo.errors import RunDirectoryError
from flowmbpo.files import TEMPORARY_SUFFIX, refused, remove_leftovers, write_bytes_atomic

Status = Literal["running", "done", "interrupted", "failed"]
LOCK_NAME = ".lock"
RUN_SCHEMA = 2
"""Version of run.json, as its `schema_version` says."""


def default_path(root: Path, config: ExperimentConfig, env_name: str) -> Path:
    """`{root}/outputs/{phase}/{env}/{config}/seed{seed}`; `env_name` is the task that really runs."""
    return root / "outputs" / config.phase / env_name / config.name / f"seed{config.seed}"


def read_run(path: Path) -> dict[str, Any]:
    """`run.json` of the run in `path`, without taking it.

    Raises RunDirectoryError when `path` holds no run, or its `run.json` cannot be read or is of another version.
    """
    try:
        record = json.loads((path / "run.json").read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise RunDirectoryError(f"{path}: holds no run (no run.json). Name a run directory.") from error
    except (ValueError, OSError) as error:
        raise RunDirectoryError(f"{path / 'run.json'}: cannot be read: {error}. Restore it from a copy.") from error
    if not isinstance(record, dict):
        raise RunDirectoryError(f"{path / 'run.json'}: is not a JSON object, so not written by flowmbpo")
    if record.get("schema_version") != RUN_SCHEMA:
        raise RunDirectoryError(
            f"{path / 'run.json'}: has schema version {record.get('schema_version')!r}; this flowmbpo reads version "
            f"{RUN_SCHEMA}. Use the flowmbpo that wrote it, or start the run anew in another directory."
        )
    return record


class RunDirectory(AbstractContextManager["RunDirectory"]):
    """A run directory held by this process until `close` or the process's end.

    Made by `create` or `open_existing`. The hold is an flock on `.lock`: the kernel drops it however the process
    ends. `config` is the file of the resolved config; `metrics` has one JSON object per line and epoch; `checkpoints`
    holds checkpoints and their manifest, `logs` logs and earlier configs.
    """

    def __init__(self, path: Path, lock: int) -> None:
        self.path = path
        self.config, self.metrics = path / "config.yaml", path / "metrics.jsonl"
        self.checkpoints, self.logs = path / "checkpoints", path / "logs"
        self._lock: int | None = lock
        _HELD.add(self)

    @classmethod
    def create(cls, path: Path) -> RunDirectory:
        """Claim `path` for a new run: a folder that does not exist yet, or an empty one.

        Raises RunDirectoryError where a run or anything else lies there, or another process
        holds it; StorageError when the disk refuses.
        """
        path = path.absolute()
        try:
            if path.exists():
                _check_free(path)
            path.mkdir(parents=True, exist_ok=True)
            run = cls(path, _acquire(path))
        except (FileExistsError, NotADirectoryError) as error:
            raise RunDirectoryError(f"{path}: lies below a file. Choose another directory with --out.") from error
        except OSError as error:
            raise refused(path, error) from error
        try:
            _check_free(path)  # again: another process may have come and gone before the lock
            record = {"schema_version": RUN_SCHEMA, "run_id": secrets.token_hex(4), "started": now()}
            run._write_running(record | {"resumed_from": []})
            run._furnish()
        except BaseException:  # let the lock go whatever ended it, an interrupt too, and pass it on
            run.close()
            raise
        return run

    @classmethod
    def open_existing(cls, path: Path) -> RunDirectory:
        """Take the run in `path`, to resume it. Raises RunDirectoryError (no run there, or held)."""
        path = path.absolute()
        read_run(path)
        try:
            run = cls(path, _acquire(path))
            run._furnish()
        except OSError as error:
            raise refused(path, error) from error
        return run

    @property
    def run_id(self) -> str:
        """Eight hex digits, made at creation; also the W&B id, so that a resume continues there."""
        return str(read_run(self.path)["run_id"])

    def write_config(self, text: str) -> None:
        """Store the resolved config; an earlier, different one moves to `logs/config-N.yaml`."""
        if self.config.exists():
            earlier = self.config.read_bytes()
            if earlier == text.encode():
                return
            count = len(list(self.logs.glob("config-*.yaml")))
            write_bytes_atomic(self.logs / f"config-{count + 1}.yaml", earlier)
        write_bytes_atomic(self.config, text.encode())

    def write_json_atomic(self, name: str, value: Any) -> Path:
        """Write `value` to the file `name` in this directory, wholly or not at all."""
        target = self.path / name
        write_bytes_atomic(target, (json.dumps(value, indent=2, allow_nan=False) + "\n").encode())
        return target

    def update_status(self, status: Status, **fields: Any) -> None:
        """Set the status and `fields` in `run.json`; a status other than running sets `ended`."""
        ended = None if status == "running" else now()
        self.write_json_atomic("run.json", {**read_run(self.path), **fields, "status": status, "ended": ended})

    def mark_resumed(self, checkpoint: str, epoch: int) -> None:
        """Note that this process goes on from `checkpoint`; the facts of the process are renewed."""
        record = read_run(self.path)
        entry = {"checkpoint": checkpoint, "epoch": epoch, "time": now(), "previous_status": record["status"]}
        self._write_running(record | {"resumed_from": [*record["resumed_from"], entry]})

    def close(self) -> None:
        """Let the directory go; safe to call twice."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def __exit__(self, *_: object) -> None:
        self.close()

    def _furnish(self) -> None:
        """Make what is missing: the folders, and `run_id.txt` for people and scripts."""
        remove_leftovers(self.path)
        self.checkpoints.mkdir(exist_ok=True)
        self.logs.mkdir(exist_ok=True)
        if not (self.path / "run_id.txt").exists():
            write_bytes_atomic(self.path / "run_id.txt", f"{self.run_id}\n".encode())

    def _write_running(self, record: dict[str, Any]) -> None:
        self.write_json_atomic("run.json", {**record, "status": "running", "ended": None, **provenance()})


def _check_free(path: Path) -> None:
    """Refuse a `path` where something lies already."""
    if not path.is_dir():
        raise RunDirectoryError(f"{path}: is a file. Choose another directory with --out.")
    if (path / "run.json").exists():
        status = read_run(path).get("status", "unknown")
        raise RunDirectoryError(
            f"{path}: already holds a run (status {status}). Continue it with --resume, "
            "or choose another directory with --out."
        )
    names = sorted(entry.name for entry in path.iterdir())
    strangers = [name for name in names if name != LOCK_NAME and not name.endswith(TEMPORARY_SUFFIX)]
    if strangers:
        raise RunDirectoryError(
            f"{path}: is not empty and holds no run (found {', '.join(strangers[:3])}). "
            "Choose a new or empty directory with --out."
        )


def _acquire(path: Path) -> int:
    """Lock `path` and write down who holds it; the descriptor to keep open."""
    descriptor = os.open(path / LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        holder = os.pread(descriptor, 1024, 0).decode("utf-8", "replace").strip() or "another process"
        os.close(descriptor)
        raise RunDirectoryError(
            f"{path}: in use by {holder}. Wait for it or stop it, or choose another directory with --out."
        ) from error
    except OSError:
        os.close(descriptor)
        raise
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, f"process {os.getpid()} on host {socket.gethostname()}\n".encode(), 0)
    return descriptor


def _close_copies() -> None:
    """In a forked worker, which may outlive its parent: only the parent holds a run."""
    for run in list(_HELD):
        run.close()


_HELD: weakref.WeakSet[RunDirectory] = weakref.WeakSet()
os.register_at_fork(after_in_child=_close_copies)

PACKAGES = ("torch", "numpy", "pydantic", "dm-control", "mujoco", "wandb", "tensorboard")
_SLURM = {"job_id": "SLURM_JOB_ID", "array_job_id": "SLURM_ARRAY_JOB_ID", "array_task_id": "SLURM_ARRAY_TASK_ID"}


def now() -> str:
    """The time in UTC, to the second: `2025-01-31T12:00:00Z`."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def provenance() -> dict[str, Any]:
    """Facts of this process for `run.json`: command, git, packages, python, host, pid, slurm."""
    versions = {"flowmbpo": flowmbpo.__version__}
    for name in PACKAGES:  # absent ones are left out
        with suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    return {
        "command": shlex.join(sys.argv),
        "git": git_state(Path(flowmbpo.__file__).parent),
        "packages": versions,
        "python": platform.python_version(),
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "slurm": {key: os.environ[name] for key, name in _SLURM.items() if name in os.environ} or None,
    }


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
