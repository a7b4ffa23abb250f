"""Writing one checkpoint file that belongs to no run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from flowmbpo.checkpoints.manifest import Manifest
from flowmbpo.checkpoints.payload import FORMAT, VERSION, check_plain
from flowmbpo.errors import CheckpointError
from flowmbpo.files import StagedFile


def check_free(path: Path, *, overwrite: bool) -> None:
    """Make sure that `path` may be written, before anything is computed. Raises CheckpointError."""
    if path.suffix != ".pt":
        raise CheckpointError(f"{path}: checkpoints end in .pt. Give --out such a name.")
    if path.is_dir() or (path.exists() and not overwrite):
        raise CheckpointError(f"{path}: exists. Give another --out, or --overwrite to replace it.")
    if path.name in Manifest.read(path.parent).files:
        raise CheckpointError(f"{path}: belongs to the run in that folder. Give another --out.")


def write_checkpoint(path: Path, payload: Mapping[str, Any]) -> str:
    """Write `payload` as a checkpoint that `flowmbpo.checkpoints.load.load` reads; returns its SHA-256.

    Raises StorageError when the disk refuses: nothing half-written stays.
    """
    check_plain(payload, "payload")
    path.parent.mkdir(parents=True, exist_ok=True)
    with StagedFile(path) as staged:
        torch.save({**payload, "replay": None, "format": FORMAT, "version": VERSION}, staged)  # type: ignore[arg-type]
        staged.commit()
    return staged.sha256
