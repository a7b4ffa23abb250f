"""Reading checkpoint files: found, verified by the manifest beside them, and loaded without running code from them.

While `latest.pt` is being replaced the manifest accepts both the old and the new hash, so a process that dies at any
point leaves a file that its manifest lists.
"""

from __future__ import annotations

import hashlib
import json
import os
import pickle
from dataclasses import asdict, dataclass
from io import BufferedReader
from pathlib import Path
from typing import Any

import torch

from flowmbpo.checkpoints.payload import FORMAT, REPLAY_FORMAT, REPLAY_VERSION, VERSION
from flowmbpo.data.foreign import UNREADABLE, ForeignFileError, check_archive
from flowmbpo.errors import CheckpointError
from flowmbpo.files import write_bytes_atomic

_PUBLISHED = " A published TD-MPC2, PWM or Newt file is imported first: `flowmbpo checkpoint import FILE`."
_ATTEMPTS = 5  # a reader may meet a writer that replaces the file several times
MANIFEST = "manifest.json"
_HEAD = {"format": "flowmbpo-manifest", "version": 1}


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
    path = folder / MANIFEST
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        if document["format"] != _HEAD["format"] or document["version"] != _HEAD["version"]:
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
    write_bytes_atomic(folder / MANIFEST, (json.dumps({**_HEAD, "files": files}, indent=1) + "\n").encode())


@dataclass(frozen=True)
class Loaded:
    """A checkpoint in memory. `verified`: its hash stands in the manifest beside it.

    A lone file has no manifest; it was checked by its archive's checksums instead.
    """

    path: Path
    payload: dict[str, Any]
    sha256: str
    verified: bool


def resolve(path: Path) -> Path:
    """The checkpoint file that `path` means: itself, or the latest of a run or checkpoints folder.

    Raises CheckpointError listing what there is instead.
    """
    if path.is_file():
        return path
    if not path.is_dir():
        there = names(path.parent)
        which = "this" if path.parent == Path() else "that"
        hint = f" In {which} folder: {', '.join(there)}." if there else ""
        raise CheckpointError(f"{path}: does not exist.{hint} Name a .pt file or a run directory.")
    folder = path / "checkpoints" if (path / "checkpoints").is_dir() else path
    if (folder / "latest.pt").is_file():
        return folder / "latest.pt"
    there = names(folder)
    hint = f"there are {', '.join(there)}: name one of them" if there else "it holds no checkpoint at all"
    raise CheckpointError(f"{folder}: holds no latest.pt; {hint}.")


def names(folder: Path) -> list[str]:
    """File names of the checkpoints in `folder`, replay buffers left out."""
    return sorted(file.name for file in folder.glob("*.pt") if not file.name.startswith("replay-"))


def load(path: Path, map_location: str | torch.device = "cpu") -> Loaded:
    """Verify and load one checkpoint file.

    Raises CheckpointError on a missing, truncated, altered or foreign file.
    """
    path = resolve(path)
    for attempt in range(_ATTEMPTS):
        with _open(path) as file:
            sha256, accepted = _sha256(file), read_manifest(path.parent).get(path.name)
            if accepted is not None and all(entry.sha256 != sha256 for entry in accepted):
                if _replaced(path, file) and attempt + 1 < _ATTEMPTS:
                    continue
                size, listed = file.seek(0, 2), [entry.size for entry in accepted]
                what = "does not have the SHA-256 that its manifest lists: damaged or replaced"
                if size not in listed:
                    how = "truncated" if size < listed[-1] else "altered"
                    what = f"has {size} bytes, its manifest says {listed[-1]}: {how}"
                raise CheckpointError(f"{path}: {what}. {_advice(path)}")
            payload = _read(path, file, FORMAT, map_location, lone=accepted is None)
            return Loaded(path, payload, sha256, verified=accepted is not None)
    raise AssertionError("the last attempt returns or raises")


class AlteredReplayError(CheckpointError):
    """A replay file that is there, and is not the one that its checkpoint was saved with."""


def load_replay(
    loaded: Loaded, map_location: str | torch.device = "cpu", *, verify: bool = True
) -> dict[str, Any] | None:
    """The replay buffer's state that belongs to a checkpoint; None if it was saved without one.

    Without `verify` an altered file is read all the same, to be looked at; never to be trained on. Raises
    CheckpointError when its file is missing or cannot be read, AlteredReplayError when it was altered.
    """
    reference = loaded.payload.get("replay")
    if reference is None:
        return None
    path = loaded.path.parent / Path(reference["file"]).name
    if not path.is_file():
        raise CheckpointError(
            f"{path}: is missing, and {loaded.path.name} needs it to resume. Put it back beside the checkpoint; "
            "without it these weights can be evaluated, not trained on."
        )
    with _open(path) as file:
        if verify and _sha256(file) != reference["sha256"]:
            raise AlteredReplayError(
                f"{path}: is not the replay buffer that {loaded.path.name} was saved with (its SHA-256 differs): "
                "damaged or replaced. Resume from another checkpoint; these weights can still be evaluated."
            )
        state: dict[str, Any] = _read(path, file, REPLAY_FORMAT, map_location)["state"]
        return state


def file_sha256(path: Path) -> str:
    """Hex digest of a file's bytes. Raises CheckpointError where it cannot be opened."""
    with _open(path) as file:
        return _sha256(file)


def _open(path: Path) -> BufferedReader:
    try:
        return open(path, "rb")
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be opened: {error.strerror}. Name a checkpoint file.") from error


def _sha256(file: BufferedReader) -> str:
    file.seek(0)
    return hashlib.file_digest(file, "sha256").hexdigest()


def _replaced(path: Path, file: BufferedReader) -> bool:
    """Whether a writer put another file in place since `file` was opened."""
    try:
        return not os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return True


def _advice(path: Path) -> str:
    """The other checkpoints in the folder whose bytes agree with the manifest."""
    manifest, folder = read_manifest(path.parent), path.parent
    accepted = {name: [entry.sha256 for entry in manifest.get(name, ())] for name in names(folder) if name != path.name}
    intact = [name for name, hashes in accepted.items() if file_sha256(folder / name) in hashes]
    if intact:
        return f"Intact in the same folder: {', '.join(intact)}."
    return "No other checkpoint in its folder is known to be intact: restore it from a copy."


def _read(
    path: Path, file: BufferedReader, form: str, map_location: str | torch.device, *, lone: bool = False
) -> dict[str, Any]:
    """What is stored in `form`; of a `lone` file its archive's checksums are compared first."""
    published, version = (_PUBLISHED, VERSION) if form == FORMAT else ("", REPLAY_VERSION)
    try:
        if lone:
            check_archive(file)
        file.seek(0)
        payload = torch.load(file, map_location=map_location, weights_only=True)
    except ForeignFileError as error:
        raise CheckpointError(
            f"{path}: is not a complete checkpoint archive ({error}): truncated, damaged, or another kind of file. "
            f"{_advice(path)}"
        ) from error
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path}: holds Python objects, which are never run: not a flowmbpo checkpoint. "
            f"Name a file that flowmbpo saved.{published}"
        ) from error
    except UNREADABLE as error:
        raise CheckpointError(f"{path}: cannot be read as a checkpoint: {error}. {_advice(path)}") from error
    if not isinstance(payload, dict) or payload.get("format") != form:
        raise CheckpointError(f"{path}: is not a flowmbpo checkpoint (no `format: {form}`). Name one.{published}")
    if payload.get("version") != version:
        raise CheckpointError(
            f"{path}: has format version {payload.get('version')!r}; this flowmbpo reads version {version}. "
            "Use the flowmbpo that wrote it."
        )
    return payload
