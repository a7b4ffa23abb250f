"""The list of hashes beside the checkpoints, written before and after each replacement.

While `latest.pt` is being replaced the manifest accepts both the old and the new hash, so a process
that dies at any point leaves a file that its manifest lists.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from flowmbpo.errors import CheckpointError
from flowmbpo.files import write_bytes_atomic

NAME = "manifest.json"
HEAD = {"format": "flowmbpo-manifest", "version": 1}


@dataclass(frozen=True)
class Entry:
    """One accepted content of a checkpoint file; `replay` is the buffer's file that it refers to."""

    sha256: str
    size: int
    epoch: int
    replay: str | None


Manifest = dict[str, list[Entry]]
"""Accepted contents per file name. One entry each, more only while a replacement is under way."""


def read_manifest(folder: Path) -> Manifest:
    """The manifest of `folder`, empty where there is none. Raises CheckpointError if damaged."""
    path = folder / NAME
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        if document["format"] != HEAD["format"] or document["version"] != HEAD["version"]:
            raise ValueError(f"format {document['format']!r} version {document['version']!r} is not known")
        return {name: [Entry(**entry) for entry in entries] for name, entries in document["files"].items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        advice = "Remove it to load the checkpoints by their own checksums."
        raise CheckpointError(f"{path}: is damaged ({error}). {advice}") from error


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Replace the manifest of `folder` in one step. Raises StorageError."""
    files = {name: [asdict(entry) for entry in entries] for name, entries in manifest.items()}
    write_bytes_atomic(folder / NAME, (json.dumps({**HEAD, "files": files}, indent=1) + "\n").encode())
