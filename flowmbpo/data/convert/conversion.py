"""One published source into one dataset: every episode exactly once, whenever the process ends."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from flowmbpo.data.convert.selection import Selection
from flowmbpo.data.convert.source import Source
from flowmbpo.data.dataset.manifest import MANIFEST, read_manifest
from flowmbpo.data.dataset.reader import Dataset
from flowmbpo.data.dataset.writer import DatasetWriter
from flowmbpo.data.foreign import Archive, open_archive
from flowmbpo.errors import DataError, StorageError

CHECKPOINT_BYTES = 512 << 20
"""So much of the source is converted between two checkpoints, and at most lost with the process."""


class Report(Protocol):
    """Told of the way: file `number` of `files`, and which part of it is converted."""

    def __call__(self, path: Path, number: int, files: int, part: float) -> None: ...


@dataclass
class Progress:
    """Where a conversion stands: the next row of the file `file`; `episodes` lie before it, kept or not."""

    source: dict[str, Any]
    totals: list[int] = field(default_factory=list)
    seen: list[int] = field(default_factory=list)
    file: int = 0
    row: int = 0
    episodes: int = 0

    def to_dict(self) -> dict[str, Any]:
        """For the dataset's checkpoint."""
        return dict(vars(self))


def convert(source: Source, dest: Path, *, limit: int | None = None, report: Report | None = None) -> Dataset:
    """Write the episodes of `source` into a dataset at `dest`, or go on with the conversion that was begun there.

    An episode's id is its number in the source. With `limit`, at most so many episodes of each task are kept, spread
    evenly over all of them. The source is only read.

    Raises DataError on sources that do not fit their format, on a `dest` that is taken or was begun from another
    source, StorageError on a full disk: the same call goes on from the last checkpoint.
    """
    check_apart(dest, source.files)
    writer, progress = _begin(source, dest, limit)
    try:
        with writer:
            selection = Selection(limit, progress.totals, progress.seen)
            for number in range(progress.file, len(source.files)):
                archive = source.open(number)
                _register(writer, archive, number)
                _convert_file(writer, source, archive, progress, selection, report)
                del archive  # the mapping, before the file may go
                source.done(number)
            return writer.finish()
    except StorageError as error:
        raise StorageError(f"{error} The same command goes on with this conversion where it stopped.") from error


def _begin(source: Source, dest: Path, limit: int | None) -> tuple[DatasetWriter, Progress]:
    asked = {
        "format": source.format,
        "files": [path.name for path in source.files],
        "limit_episodes_per_task": limit,
        **source.options(),
    }
    if (dest / MANIFEST).is_file():
        progress = _earlier(source, dest, asked)
        return DatasetWriter.resume(dest), progress
    totals = [] if limit is None else _totals(source)
    progress = Progress(asked, totals, [0] * len(source.tasks))
    record = {**asked, "kind": "converted", "files": []}
    return DatasetWriter.create(dest, source.set_name, source.tasks, record, progress=progress.to_dict()), progress


def _earlier(source: Source, dest: Path, asked: dict[str, Any]) -> Progress:
    """How far the conversion in `dest` came. Raises DataError where it is finished, or of something else."""
    manifest = read_manifest(dest)
    if manifest.complete:
        raise DataError(f"{dest}: holds a finished dataset. Name another folder, or remove this one first.")
    stored = manifest.progress.get("source")
    if stored != asked:
        differing = sorted(key for key in asked if not isinstance(stored, dict) or stored.get(key) != asked[key])
    elif [(t.name, t.obs_dim, t.action_dim) for t in manifest.tasks] != [
        (t.name, t.obs_dim, t.action_dim) for t in source.tasks
    ]:
        differing = ["tasks"]
    else:
        differing = []
    if differing:
        raise DataError(
            f"{dest}: holds an unfinished dataset that was begun from another source ({', '.join(differing)} differ). "
            "Give the same command as then to go on with it, or remove the folder, or name another."
        )
    progress = Progress(**manifest.progress)
    for path, record in zip(source.files[: progress.file], manifest.source["files"], strict=False):
        if path.exists() and _identity(open_archive(path)) != record:
            raise _exchanged(path, dest)
    return progress


def _totals(source: Source) -> list[int]:
    """Episodes of each task in all files."""
    counts = [source.count(number) for number in range(len(source.files))]
    return [sum(column) for column in zip(*counts, strict=True)]


def _identity(archive: Archive) -> dict[str, Any]:
    return {"name": archive.path.name, "size": archive.size, "members_sha256": archive.identity}


def _exchanged(path: Path, dest: Path) -> DataError:
    return DataError(
        f"{path}: is not the file that the conversion in {dest} was begun with. Bring that one back, or begin in "
        "another folder."
    )


def _register(writer: DatasetWriter, archive: Archive, number: int) -> None:
    """Note which file this is; refuse another one than the conversion was begun with, and one that came before."""
    files: list[dict[str, Any]] = writer.source["files"]
    if number == len(files):
        twin = next((file["name"] for file in files if file["members_sha256"] == archive.identity), None)
        if twin is not None:
            raise DataError(f"{archive.path}: is a copy of {twin}: its episodes would be there twice. Remove one.")
        writer.source = {**writer.source, "files": [*files, _identity(archive)]}
    elif files[number] != _identity(archive):
        raise _exchanged(archive.path, writer.path)


def _convert_file(
    writer: DatasetWriter,
    source: Source,
    archive: Archive,
    progress: Progress,
    selection: Selection,
    report: Report | None,
) -> None:
    number, rows = progress.file, archive.tensors["obs"].shape[0]
    row_bytes, behind = archive.size / max(rows, 1), progress.row
    for portion in source.portions(archive, number, progress.row, selection):
        for block in portion.blocks:
            ids = progress.episodes + block.numbers
            writer.add_many(block.task, block.obs, block.action, block.reward, block.terminated, ids)
        progress.row = portion.end
        progress.episodes += portion.episodes
        progress.seen = selection.seen
        if (progress.row - behind) * row_bytes >= CHECKPOINT_BYTES:
            writer.checkpoint(progress.to_dict())
            behind = progress.row
        if report is not None:
            report(archive.path, number, len(source.files), progress.row / max(rows, 1))
    progress.file, progress.row = number + 1, 0
    writer.checkpoint(progress.to_dict())


def check_apart(dest: Path, files: tuple[Path, ...]) -> None:
    """Raises DataError where writing to `dest` could touch the source."""
    target = dest.resolve()
    for path in files:
        folder = path.resolve().parent
        if target == folder or folder.is_relative_to(target):
            raise DataError(f"{dest}: holds the source, which is never written to. Name another folder.")
