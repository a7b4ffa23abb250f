"""Keeps what a non-finite update was computed from, for whoever looks into it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from flowmbpo.checkpoints.atomic import StagedFile, refused


@dataclass(frozen=True)
class NonFiniteDump:
    """Writes each such batch to `{folder}/{name}.pt`; the folder appears with the first one."""

    folder: Path

    def __call__(self, name: str, tensors: dict[str, Tensor]) -> None:
        """Raises StorageError."""
        try:
            self.folder.mkdir(exist_ok=True)
        except OSError as error:
            raise refused(self.folder, error) from error
        with StagedFile(self.folder / f"{name}.pt") as staged:
            torch.save({key: value.detach().cpu() for key, value in tensors.items()}, staged)  # type: ignore[arg-type]
            staged.commit()
