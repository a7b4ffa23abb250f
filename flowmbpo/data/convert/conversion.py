"""One published source into one dataset: every episode exactly once, whenever the process ends."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flowmbpo.data.convert.source import Source, spread
from flowmbpo.data.dataset.reader import Dataset
from flowmbpo.data.dataset.writer import DatasetWriter
from flowmbpo.data.foreign import Archive, open_archive
from flowmbpo.errors import DataError, StorageError

CHECKPOINT_BYTES = 512 << 20
"""So much of the source is converted between two checkpoints."""


Report = Callable[[Path, int, int, float], None]
"""Told of the way: a file, its number of how many, and which part of it is converted."""


def convert(source: Source, dest: Path, *, limit: int | None = None, report: Report | None = None) -> Dataset:
    """Write the episodes of `source` into a dataset at `dest`, or go on with the conversion that was begun there.

    An episode's id is its number in the source. With `limit`, at most so many episodes of each task are kept, spread
    evenly over all of them. The source is only read; a repeated call looks at it from the beginning, and adds the
    episodes that the dataset does not hold.

    Raises DataError on sources that do not fit their format, on a `dest` that is taken or was begun from another
    source, StorageError on a full disk: the same call goes on from the last checkpoint.
    """
    target = dest.resolve()
    for folder in (path.resolve().parent for path in source.files):
        if target == folder or folder.is_relative_to(target):
            raise DataError(f"{dest}: holds the source, which is never written to. Name another folder.")
    kept = None
    if limit is not None:
        tasks = [source.index(open_archive(path), number).task for number, path in enumerate(source.files)]
        kept = spread(np.concatenate(tasks), limit)
    record = {"format": source.format, "limit_episodes_per_task": limit, **source.options(), "kind": "converted"}
    record["files"] = [{"name": path.name} for path in source.files]
    try:
        with DatasetWriter.begin(dest, source.set_name, source.tasks, record, _asked) as writer:
            first = 0
            for number in range(len(source.files)):
                first = _convert_file(writer, source, number, first, kept, report)
            return writer.finish()
    except StorageError as error:
        raise StorageError(f"{error} The same command goes on with this conversion where it stopped.") from error


def _asked(record: dict[str, Any]) -> dict[str, Any]:
    """A dataset's record without what was found in the files."""
    return {**record, "files": [file["name"] for file in record.get("files", ())]}


def _convert_file(
    writer: DatasetWriter, source: Source, number: int, first: int, kept: NDArray[Any] | None, report: Report | None
) -> int:
    """Add the episodes of a file that are not there, of those that are `kept` [all files] if given.

    `first` episodes lie before it. Returns how many do then.
    """
    archive = source.open(number)
    index = source.index(archive, number)
    _register(writer, archive, number)
    episodes, behind = len(index.task), 0
    for begin, end in source.chunks(archive, index):
        wanted = ~writer.holds(np.arange(first + begin, first + end))
        if kept is not None:
            wanted &= kept[first + begin : first + end]
        for task, numbers, fields in source.read(archive, index, begin, end, wanted):
            ended = fields.get("terminated")
            writer.add_many(task, fields["obs"], fields["action"], fields["reward"], ended, first + numbers)
        if end == episodes or (end - behind) * archive.size >= CHECKPOINT_BYTES * episodes:
            writer.checkpoint()
            behind = end
        if report is not None:
            report(archive.path, number, len(source.files), end / episodes)
    return first + episodes


def _register(writer: DatasetWriter, archive: Archive, number: int) -> None:
    """Note which file this is; refuse another one than the conversion was begun with, and one that came before."""
    files: list[dict[str, Any]] = list(writer.source["files"])
    identity = {"name": archive.path.name, "size": archive.size, "members_sha256": archive.identity}
    if "members_sha256" in files[number] and files[number] != identity:
        raise DataError(
            f"{archive.path}: is not the file that the conversion in {writer.path} was begun with. Bring that one "
            "back, or begin in another folder."
        )
    twin = next((file["name"] for file in files[:number] if file.get("members_sha256") == archive.identity), None)
    if twin is not None:
        raise DataError(f"{archive.path}: is a copy of {twin}: its episodes would be there twice. Remove one.")
    files[number] = identity
    writer.source = {**writer.source, "files": files}
