"""The list of hashes beside the checkpoints, written before and after each replacement.

While `latest.pt` is being replaced the manifest accepts both the old and the new hash, so a process
that dies at any point leaves a file that its manifest lists.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path

from flowmbpo.errors import CheckpointError
from flowmbpo.files import write_bytes_atomic

NAME = "manifest.json"
FORMAT = "flowmbpo-manifest"
VERSION = 1


@dataclass(frozen=True)
class Entry:
    """One accepted content of a checkpoint file; `replay` is the buffer's file that it refers to."""

    sha256: str
    size: int
    epoch: int
    replay: str | None


@dataclass
class CheckpointManifest:
    """Accepted contents per file name. One entry each, more only while a replacement is under way."""

    files: dict[str, list[Entry]] = field(default_factory=dict)

    @classmethod
    def read(cls, folder: Path) -> CheckpointManifest:
        """The manifest of `folder`, empty where there is none. Raises CheckpointError if damaged."""
        path = folder / NAME
        try:
            document = json.loads(path.read_text(encoding="utf-8"))
            if document["format"] != FORMAT or document["version"] != VERSION:
                raise ValueError(f"format {document['format']!r} version {document['version']!r} is not known")
            return cls({name: [Entry(**entry) for entry in entries] for name, entries in document["files"].items()})
        except FileNotFoundError:
            return cls()
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            advice = "Remove it to load the checkpoints by their own checksums."
            raise CheckpointError(f"{path}: is damaged ({error}). {advice}") from error

    def write(self, folder: Path) -> None:
        """Replace the manifest of `folder` in one step. Raises StorageError."""
        document = {"format": FORMAT, "version": VERSION, **asdict(self)}
        write_bytes_atomic(folder / NAME, (json.dumps(document, indent=1) + "\n").encode())


def read_or_set_aside(folder: Path) -> CheckpointManifest:
    """The manifest to go on writing; a damaged one is kept as `manifest.damaged.json`."""
    try:
        return CheckpointManifest.read(folder)
    except CheckpointError:
        os.replace(folder / NAME, folder / "manifest.damaged.json")
        return CheckpointManifest()
