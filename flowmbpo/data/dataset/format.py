"""What a dataset's folder holds: the manifest `dataset.json`, and HDF5 files of whole episodes of one task (shards).

The manifest carries a SHA-256 of its own content and is refused where a single byte of it has changed. It lists every
shard with its own.

An episode of L transitions takes L + 1 rows, as in the replay buffer: a row holds
an observation and the action, reward and termination of the transition that LEAVES it. The last row
holds the final observation alone (action, reward and terminated are 0). Two episodes, L = 3 and L = 1::

    row              0      1      2      3   |   4      5
    obs              o0     o1     o2     o3  |   p0     p1
    action           a0     a1     a2     0   |   b0     0        o0 --a0, r0--> o1 --a1, r1--> o2 ...
    reward           r0     r1     r2     0   |   s0     0
    terminated       0      0      1      0   |   0      0        o3 ended by itself, p1 by a time limit

    episodes/start   0                            4
    episodes/length  3                            1               transitions

Data sets `obs` f32 [R, O], `action` f32 [R, A], `reward` f32 [R], `terminated` u8 [R] with the task's
own widths, chunked, byte-shuffled, compressed by LZF, with a Fletcher-32 checksum per chunk;
`episodes/{start,length,id,source}` i64 and `episodes/return` f64, the sum of rewards, all [E].
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal

import h5py
import numpy as np
import numpy.typing as npt
from pydantic import Field, ValidationError

from flowmbpo.config.base import FolderName, FrozenConfig, NonNegativeInt, PositiveInt
from flowmbpo.errors import DataError
from flowmbpo.files import write_bytes_atomic

MANIFEST = "dataset.json"
FORMAT = "flowmbpo-dataset"
VERSION = 2
RESTORE = "Make or copy the dataset again, or bring this file back from a backup."

Array = npt.NDArray[Any]

# LZF writes two to three times as fast as gzip level 1 and takes a tenth more room on observed floats.
FILTERS = {"compression": "lzf", "shuffle": True, "fletcher32": True}
CHUNK_ROWS = 4096
ROW_FIELDS = ("obs", "action", "reward", "terminated")
EPISODE_FIELDS = ("length", "id", "return", "source")
EPISODE = np.dtype(list(zip(EPISODE_FIELDS, ("<i8", "<i8", "<f8", "<i8"), strict=True)))

# A manifest from elsewhere names no file outside its folder.
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

    def resized(self, file: Path) -> str:
        """Whether `file`, where it should lie, is missing or of another size, in words; empty where it is not."""
        if not file.is_file():
            return "is missing"
        size = file.stat().st_size
        return f"has {size} bytes instead of {self.size}" if size != self.size else ""


class Manifest(FrozenConfig):
    """Everything in `dataset.json`. Of an unfinished dataset, `files` and the counts of `tasks` are valid so far."""

    format: Literal["flowmbpo-dataset"] = "flowmbpo-dataset"
    version: Literal[2] = 2
    set_name: str
    obs_dim: PositiveInt
    action_dim: PositiveInt
    complete: bool = False
    source: dict[str, Any] = Field(default_factory=dict)
    tasks: Annotated[tuple[TaskRecord, ...], Field(min_length=1)]
    files: tuple[ShardRecord, ...] = ()

    def shards(self, task: int) -> tuple[ShardRecord, ...]:
        """The files of the task with this id, in the order of their numbers."""
        return tuple(record for record in self.files if record.task == self.tasks[task].name)


def encode(manifest: Manifest) -> bytes:
    """The bytes of `dataset.json`. Raises DataError where the source is not JSON."""
    content = manifest.model_dump()
    try:
        digest = hashlib.sha256(_dump(content)).hexdigest()
    except (TypeError, ValueError) as error:
        raise DataError(
            f"the source of a dataset is stored as JSON, which refuses it ({error}): "
            "use texts, finite numbers, lists and dictionaries"
        ) from error
    return _dump(content | {"sha256": digest}) + b"\n"


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Replace the folder's manifest in one durable step. Raises DataError and StorageError."""
    write_bytes_atomic(folder / MANIFEST, encode(manifest))


def read_manifest(folder: Path) -> Manifest:
    """The manifest of the dataset in `folder`, finished or not.

    Raises DataError where there is none (naming a dataset one level above or below), and where it is
    foreign, damaged or of another version.
    """
    path = folder / MANIFEST
    if not path.is_file():
        advice = nearby(folder, lambda place: (place / MANIFEST).is_file()) or (
            " Give the folder that 'data convert' or 'data collect' wrote."
            if folder.exists()
            else " The folder does not exist."
        )
        raise DataError(f"{folder}: not a dataset, there is no {MANIFEST}.{advice}")
    try:
        data = path.read_bytes()
        content = json.loads(data)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:  # a UnicodeDecodeError is a ValueError
        raise DataError(f"{path}: damaged: it is not JSON ({error}). {RESTORE}") from error
    form = content.get("format") if isinstance(content, dict) else type(content).__name__
    if form != FORMAT:
        raise DataError(f"{path}: no dataset of this program: its format is {form!r}, not {FORMAT!r}")
    if content.get("version") != VERSION:
        raise DataError(
            f"{path}: written in version {content.get('version')!r} of the format, this program reads {VERSION}: "
            "convert or collect the data again"
        )
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


def _dump(content: dict[str, Any]) -> bytes:
    return json.dumps(content, indent=1, allow_nan=False).encode("ascii")


def nearby(path: Path, fits: Callable[[Path], object]) -> str:
    """` Did you mean FOLDER?` for the folders one level below `path` or above it that fit, or an empty string."""
    path = path.absolute()
    below = sorted(path.iterdir()) if path.is_dir() else []
    near = [str(place) for place in (path.parent, path.parent.parent, *below) if place.is_dir() and fits(place)]
    return f" Did you mean {' or '.join(near[:5])}?" if near else ""


def row_starts(length: Array) -> npt.NDArray[np.int64]:
    """First row of each episode, of `length` [E] transitions each."""
    starts = np.zeros(len(length), np.int64)
    np.cumsum(length[:-1] + 1, out=starts[1:])
    return starts


def first_place(wrong: Array) -> tuple[int, ...] | None:
    """Indices of the first entry that is not zero; None where all are."""
    return tuple(np.argwhere(wrong)[0].tolist()) if wrong.any() else None


def check_episodes(task: TaskRecord, fields: dict[str, Array], ids: Array, source: int) -> None:
    """Raises DataError naming task, episode, step, field and value where a dataset cannot hold one of them."""
    reward = fields["reward"]
    count, length = len(ids), reward.shape[1] if reward.ndim == 2 else 0
    if length < 1:
        raise DataError(
            f"task {task.name}: reward has the shape {reward.shape}, not [episodes, transitions] "
            "with at least 1 transition: leave out episodes that never took a step"
        )
    wide = {"obs": (count, length + 1, task.obs_dim), "action": (count, length, task.action_dim)}
    for name, values in fields.items():
        shape = wide.get(name, (count, length))
        if values.shape != shape:
            raise DataError(
                f"task {task.name}: {name} has the shape {values.shape}, expected {shape} for {count} episodes of "
                f"{length} transitions: the task has obs_dim {task.obs_dim} and action_dim {task.action_dim}"
            )
        place = first_place(~np.isfinite(values))
        if place:
            where = f" column {place[2]}" if len(place) > 2 else ""
            raise DataError(
                f"task {task.name}, episode {ids[place[0]]}, step {place[1]}: {name}{where} is {values[place]}: only "
                "finite values are stored; leave the episode out or mend it"
            )
    early = first_place(fields["terminated"][:, :-1])
    if early:
        raise DataError(
            f"task {task.name}, episode {ids[early[0]]}, step {early[1]}: terminated before its last transition "
            f"({length - 1}): an episode ends where it terminates, cut it there"
        )
    if source < 0:
        raise DataError(f"task {task.name}: source {source} is no index into the manifest's sources")


def lay_out(fields: dict[str, Array], ids: Array, source: int) -> tuple[Array, Array]:
    """Episodes as rows [E * (L + 1)] with the fields ROW_FIELDS (see above), and EPISODE [E]."""
    widths = {name: fields[name].shape[2:] for name in ROW_FIELDS}
    row = np.dtype([(name, "u1" if name == "terminated" else "<f4", width) for name, width in widths.items()])
    rows = np.zeros(fields["obs"].shape[:2], row)
    rows["obs"] = fields["obs"]
    for name in ROW_FIELDS[1:]:
        rows[name][:, :-1] = fields[name]
    index = np.empty(len(ids), EPISODE)
    index["length"], index["id"], index["source"] = fields["reward"].shape[1], ids, source
    index["return"] = fields["reward"].sum(1, dtype=np.float64)
    return rows.reshape(-1), index


def encode_shard(task: str, rows: Array, episodes: Array) -> bytes:
    """The bytes of a shard with `rows` and their `episodes` (EPISODE [E]); equal content, equal bytes.

    The file is composed in memory, so that no disk can leave it half-written: about twice the size
    of `rows` while it lasts.
    """
    index = {"start": row_starts(episodes["length"]), **{name: episodes[name] for name in EPISODE_FIELDS}}
    with h5py.File(f"{task}.h5", "w", driver="core", backing_store=False, block_size=2**24, libver="v110") as file:
        file.attrs["task"] = task
        for name in ROW_FIELDS:
            column = rows[name]
            chunks = (min(CHUNK_ROWS, len(rows)), *column.shape[1:])
            store = file.create_dataset(name, column.shape, column.dtype, chunks=chunks, **FILTERS)
            for first in range(0, len(rows), CHUNK_ROWS):
                store[first : first + CHUNK_ROWS] = np.ascontiguousarray(column[first : first + CHUNK_ROWS])
        for name, values in index.items():
            chunks = (min(CHUNK_ROWS, len(values)),)
            file.create_dataset(f"episodes/{name}", data=np.ascontiguousarray(values), chunks=chunks, **FILTERS)
        file.flush()
        return bytes(file.id.get_file_image())


@contextmanager
def open_shard(path: Path) -> Iterator[Any]:
    """The open HDF5 file. What HDF5 or a checksum refuses in the block is raised as DataError."""
    try:
        with h5py.File(path, "r", locking=False) as file:
            yield file
    except (OSError, KeyError, RuntimeError, ValueError, TypeError, AttributeError) as error:
        raise DataError(f"{path}: damaged or not readable ({error}). {RESTORE}") from error


def read_index(path: Path, *names: str) -> dict[str, Array]:
    """Columns [E] of a shard's episodes: those of these names, or `start` and EPISODE_FIELDS."""
    with open_shard(path) as file:
        return {name: file[f"episodes/{name}"][:] for name in names or ("start", *EPISODE_FIELDS)}
