"""A published file read without running anything from it, and told by its names and shapes alone."""

from __future__ import annotations

import lzma
import pickle
import struct
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from flowmbpo.checkpoints.importers.foreign import ForeignModel
from flowmbpo.checkpoints.importers.pwm import PICKLED_NAME, PickledStatistics, is_pwm, read_pwm
from flowmbpo.checkpoints.importers.tdmpc2 import read_tdmpc2, recognise_layout
from flowmbpo.checkpoints.load import file_sha256
from flowmbpo.errors import CheckpointError

KNOWN = "TD-MPC2 (three layouts), PWM, Newt, or a folder that `flowmbpo checkpoint export` wrote"
_UNCHECKED_NOTE = (
    "The file is of torch's old kind, which stores no checksums: damage to its numbers would not be noticed. Compare "
    "its SHA-256 with one from where it was published."
)


def foreign_model(file: ForeignFile) -> ForeignModel:
    """The model that a file holds. Raises CheckpointError where it is not known or does not fit."""
    model = _recognised(file)
    return model if file.checksums else replace(model, notes=(*model.notes, _UNCHECKED_NOTE))


def _recognised(file: ForeignFile) -> ForeignModel:
    try:
        if is_pwm(file.content):
            return read_pwm(file.content)
        state = file.content.get("model", file.content)
        if isinstance(state, Mapping) and all(isinstance(name, str) for name in state):
            layout = recognise_layout({name.removeprefix("module."): None for name in state})
            if layout is not None:
                return read_tdmpc2(state, layout)
    except CheckpointError as error:
        raise CheckpointError(f"{file.path}: {error}. Nothing was imported.") from error
    names = state.keys() if isinstance(state, Mapping) else file.content.keys()
    if any(str(name).startswith("_encoder.rgb") for name in names):
        raise CheckpointError(f"{file.path}: is a model of images; those of states can be imported.")
    shown = ", ".join(sorted(map(str, names))[:4]) or "nothing"
    raise CheckpointError(f"{file.path}: is no checkpoint that is known here (it holds {shown}). Known are: {KNOWN}.")


# All that zipfile and torch raise on damaged bytes; MemoryError comes of sizes that damage made huge.
_UNREADABLE = (
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    struct.error,
    AssertionError,
    MemoryError,
    OverflowError,
    EOFError,
    NotImplementedError,
    RuntimeError,
    ValueError,
    KeyError,
    TypeError,
    AttributeError,
    IndexError,
    OSError,
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
    if zipped:
        _check_archive(path)
    try:
        with torch.serialization.safe_globals([(PickledStatistics, PICKLED_NAME)]):
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path}: holds Python objects that a checkpoint has no need of, or is no checkpoint at all "
            f"({_first_line(error)}). Nothing of it was run. Import a file with tensors and plain values only."
        ) from error
    except _UNREADABLE as error:
        raise CheckpointError(
            f"{path}: cannot be read as a checkpoint ({_first_line(error)}): truncated, damaged, or another kind "
            "of file. Fetch it again."
        ) from error
    if not isinstance(content, dict):
        raise CheckpointError(
            f"{path}: holds a {type(content).__name__}, where checkpoints hold a dictionary. "
            "Name a file of TD-MPC2, PWM, Newt or flowmbpo."
        )
    return ForeignFile(path, sha256, content, checksums=zipped)


def _check_archive(path: Path) -> None:
    """The checksums of every member: torch itself reads flipped bits without a word."""
    try:
        with zipfile.ZipFile(path) as archive:
            broken = archive.testzip()
    except _UNREADABLE as error:
        raise CheckpointError(f"{path}: is truncated or damaged ({_first_line(error)}). Fetch it again.") from error
    if broken is not None:
        raise CheckpointError(f"{path}: is damaged (the checksum of {broken} does not fit). Fetch it again.")


def _first_line(error: BaseException) -> str:
    """The part of torch's message that names the cause; the rest advises on unsafe loading."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    named = [line for line in lines if "GLOBAL" in line or "Unsupported" in line or PICKLED_NAME in line]
    chosen = (named or lines or [type(error).__name__])[0]
    return chosen.split(" Please ")[0].rstrip(".")
