"""Keeps what a non-finite update was computed from, or what breaks an episode, for whoever looks into it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from flowmbpo.files import StagedFile, refused


@dataclass(frozen=True)
class NonFiniteDump:
    """Writes each such record to `{folder}/{name}.pt`; the folder appears with the first one."""

    folder: Path

    def __call__(self, name: str, values: Mapping[str, Tensor | str | int]) -> None:
        """Raises StorageError."""
        try:
            self.folder.mkdir(exist_ok=True)
        except OSError as error:
            raise refused(self.folder, error) from error
        with StagedFile(self.folder / f"{name}.pt") as staged:
            kept = {key: value.detach().cpu() if isinstance(value, Tensor) else value for key, value in values.items()}
            torch.save(kept, staged)  # type: ignore[arg-type]
            staged.commit()
