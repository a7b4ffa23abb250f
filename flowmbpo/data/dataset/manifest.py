"""`dataset.json`: what a dataset's folder holds, and how far an unfinished one is valid.

The file carries a SHA-256 of its own content and is refused where a single byte of it has changed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, ValidationError

from flowmbpo.config.base import FrozenConfig, NonNegativeInt, PositiveInt, path_part
from flowmbpo.errors import DataError
from flowmbpo.files import refused, write_bytes_atomic

MANIFEST = "dataset.json"
FORMAT = "flowmbpo-dataset"
VERSION = 1

# A manifest from elsewhere names no file outside its folder.
FolderName = Annotated[str, AfterValidator(path_part)]
ShardName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._+-]*/[0-9]+\.h5$")]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class TaskRecord(FrozenConfig):
    """A task and what is stored of it. Its place in the manifest is its id."""

    name: FolderName
    obs_dim: PositiveInt
    action_dim: PositiveInt
    episodes: NonNegativeInt = 0
    transitions: NonNegativeInt = 0
    reward_sum: float = 0.0
    reward_square_sum: float = 0.0

    @property
    def plain_name(self) -> str:
        """The name without what a perturbation added to it."""
        return self.name.partition("+")[0]


class ShardRecord(FrozenConfig):
    """One finished HDF5 file; `name` is its path inside the dataset."""

    name: ShardName
    task: str
    sha256: Sha256
    size: PositiveInt  # bytes
    episodes: PositiveInt
    transitions: PositiveInt


class SpoolRecord(FrozenConfig):
    """The episodes of a task that no shard holds yet; what lies behind these counts is not valid."""

    task: str
    number: NonNegativeInt
    rows: PositiveInt
    episodes: PositiveInt


class Manifest(FrozenConfig):
    """Everything in `dataset.json`. `spools` and `progress` are those of an unfinished dataset."""

    format: Literal["flowmbpo-dataset"] = "flowmbpo-dataset"
    version: Literal[1] = 1
    set_name: str
    obs_dim: PositiveInt
    action_dim: PositiveInt
    complete: bool = False
    source: dict[str, Any] = Field(default_factory=dict)
    progress: dict[str, Any] = Field(default_factory=dict)
    tasks: Annotated[tuple[TaskRecord, ...], Field(min_length=1)]
    spools: tuple[SpoolRecord, ...] = ()
    files: tuple[ShardRecord, ...] = ()

    def shards(self, task: int) -> tuple[ShardRecord, ...]:
        """The files of the task with this id, in the order of their numbers."""
        return tuple(record for record in self.files if record.task == self.tasks[task].name)


def encode(manifest: Manifest) -> bytes:
    """The bytes of `dataset.json`. Raises DataError where source or progress is not JSON."""
    content = manifest.model_dump()
    try:
        digest = hashlib.sha256(_dump(content)).hexdigest()
    except (TypeError, ValueError) as error:
        raise DataError(
            f"source and progress of a dataset are stored as JSON, which refuses them ({error}): "
            "use texts, finite numbers, lists and dictionaries"
        ) from error
    return _dump(content | {"sha256": digest}) + b"\n"


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Replace the folder's manifest in one durable step. Raises DataError and StorageError."""
    data = encode(manifest)
    try:
        write_bytes_atomic(folder / MANIFEST, data)
    except OSError as error:
        raise refused(folder / MANIFEST, error) from error


def read_manifest(folder: Path) -> Manifest:
    """The manifest of the dataset in `folder`, finished or not.

    Raises DataError where there is none (naming a dataset one level above or below), and where it is
    foreign, damaged or of another version.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise DataError(f"{folder}: not a dataset, there is no {MANIFEST}.{_advice(folder)}")
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error
    content = _parse(path, data)
    content.pop("sha256", None)
    try:
        manifest = Manifest.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise DataError(f"{path}: damaged: {where}: {first['msg']}. {RESTORE}") from error
    if encode(manifest) != data:
        raise DataError(f"{path}: damaged: its content does not have its SHA-256. {RESTORE}")
    return manifest


RESTORE = "Make or copy the dataset again, or bring this file back from a backup."


def _dump(content: dict[str, Any]) -> bytes:
    return json.dumps(content, indent=1, allow_nan=False).encode("ascii")


def _parse(path: Path, data: bytes) -> dict[str, Any]:
    try:
        content = json.loads(data)
    except (ValueError, RecursionError) as error:  # a UnicodeDecodeError is a ValueError
        raise DataError(f"{path}: damaged: it is not JSON ({error}). {RESTORE}") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        found = content.get("format") if isinstance(content, dict) else type(content).__name__
        raise DataError(f"{path}: no dataset of this program: its format is {found!r}, not {FORMAT!r}")
    if content.get("version") != VERSION:
        raise DataError(
            f"{path}: written in version {content.get('version')!r} of the format, this program reads {VERSION}: "
            "convert or collect the data again"
        )
    return content


def _advice(folder: Path) -> str:
    """Where the dataset is instead, if it is near."""
    if not folder.exists():
        return " The folder does not exist."
    if folder.is_file():
        near = [folder.parent, folder.parent.parent]
    else:
        near = [folder.parent, folder.parent.parent, *_subfolders(folder)]
    found = [str(place) for place in near if (place / MANIFEST).is_file()]
    if not found:
        return " Give the folder that 'data convert' or 'data collect' wrote."
    return f" Did you mean {' or '.join(found[:5])}?"


def _subfolders(folder: Path) -> Iterator[Path]:
    try:
        yield from sorted(place for place in folder.iterdir() if place.is_dir())
    except OSError:
        return
