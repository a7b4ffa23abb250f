"""A published file, read without running anything from it and told by its names and shapes alone."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flowmbpo.checkpoints.importers.foreign import ForeignModel
from flowmbpo.checkpoints.importers.pwm import PICKLED_NAME, PickledStatistics, is_pwm, read_pwm
from flowmbpo.checkpoints.importers.tdmpc2 import read_tdmpc2, recognise_layout
from flowmbpo.checkpoints.load import file_sha256
from flowmbpo.data.foreign import ForeignFileError, UnsafeFileError, check_archive, load_inert
from flowmbpo.errors import CheckpointError

KNOWN = "TD-MPC2 (three layouts), PWM, Newt, or a folder that `flowmbpo checkpoint export` wrote"
_UNCHECKED_NOTE = (
    "The file is of torch's old kind, which stores no checksums: damage to its numbers would not be noticed. Compare "
    "its SHA-256 with one from where it was published."
)


@dataclass(frozen=True)
class ForeignFile:
    """What a file holds: plain containers, numbers and tensors (mapped from the disk where possible).

    `checksums`: whether the file stores any, so that damage is found.
    """

    path: Path
    sha256: str
    content: dict[str, Any]
    checksums: bool


def read_foreign(path: Path) -> ForeignFile:
    """Load `path` on the CPU.

    Only tensors, plain values and PWM's running statistics (as inert data) are accepted. Raises
    CheckpointError on a missing, damaged or hostile file; nothing in it is ever executed.
    """
    sha256 = file_sha256(path)
    zipped = zipfile.is_zipfile(path)
    try:
        if zipped:
            check_archive(path)
        content = load_inert(path, {PICKLED_NAME: PickledStatistics})
    except UnsafeFileError as error:
        raise CheckpointError(
            f"{path}: holds Python objects that a checkpoint has no need of, or is no checkpoint at all "
            f"({error}). Nothing of it was run. Import a file with tensors and plain values only."
        ) from error
    except ForeignFileError as error:
        raise CheckpointError(
            f"{path}: cannot be read as a checkpoint ({error}): truncated, damaged, or another kind of file. "
            "Fetch it again."
        ) from error
    if not isinstance(content, dict):
        raise CheckpointError(
            f"{path}: holds a {type(content).__name__}, where checkpoints hold a dictionary. "
            "Name a file of TD-MPC2, PWM, Newt or flowmbpo."
        )
    return ForeignFile(path, sha256, content, checksums=zipped)


def foreign_model(file: ForeignFile) -> ForeignModel:
    """The model that a file holds. Raises CheckpointError where it is not known or does not fit."""
    state = file.content.get("model", file.content)
    model: ForeignModel | None = None
    try:
        if is_pwm(file.content):
            model = read_pwm(file.content)
        elif isinstance(state, Mapping) and all(isinstance(name, str) for name in state):
            layout = recognise_layout({name.removeprefix("module.") for name in state})
            model = None if layout is None else read_tdmpc2(state, layout)
    except CheckpointError as error:
        raise CheckpointError(f"{file.path}: {error}. Nothing was imported.") from error
    if model is not None:
        model.notes += () if file.checksums else (_UNCHECKED_NOTE,)
        return model
    names = state.keys() if isinstance(state, Mapping) else file.content.keys()
    if any(str(name).startswith("_encoder.rgb") for name in names):
        raise CheckpointError(f"{file.path}: is a model of images; those of states can be imported.")
    shown = ", ".join(sorted(map(str, names))[:4]) or "nothing"
    raise CheckpointError(f"{file.path}: is no checkpoint that is known here (it holds {shown}). Known are: {KNOWN}.")
