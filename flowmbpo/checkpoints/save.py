"""Writing checkpoint files so that a process killed at any point leaves a verified one."""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from flowmbpo.checkpoints.load import MANIFEST, Entry, Manifest, file_sha256, names, read_manifest, write_manifest
from flowmbpo.checkpoints.payload import FORMAT, REPLAY_FORMAT, REPLAY_VERSION, VERSION, check_plain, missing_keys
from flowmbpo.errors import CheckpointError
from flowmbpo.files import StagedFile, refused, remove_leftovers, sync_folder

_EPOCH = re.compile(r"epoch\d{6,}")


def epoch_name(epoch: int) -> str:
    """`epoch000200`: sorts by epoch up to 999,999 and is parsed as a number beyond."""
    return f"epoch{epoch:06d}"


class CheckpointStore:
    """The checkpoints folder of one run, written by its one owner.

    Order of a save, each step durable before the next: the replay buffer under a new name; the checkpoint beside its
    target; the manifest accepting both hashes; the replacement; the manifest accepting the new hash alone; removal of
    what nothing refers to. `keep` newest epoch files stay (None: all).
    """

    def __init__(self, folder: Path, keep: int | None = None) -> None:
        self.folder, self.keep = folder, keep

    def save(self, name: str, payload: Mapping[str, Any], replay: Mapping[str, Any] | None = None) -> Path:
        """Write `payload` as `{name}.pt` ('latest', 'best' or `epoch_name(n)`), `replay` beside it.

        `payload` holds at least config, epoch, agent_steps, env_steps and agent; `format`, `version` and the
        reference to `replay` are added. Returns the file.

        Raises StorageError when the disk refuses: the file as it was before is then intact and no
        partial file is left. TypeError on a value that is not plain, ValueError on a bad name.
        """
        if name not in ("latest", "best") and not _EPOCH.fullmatch(name):
            raise ValueError(f"'{name}' is no checkpoint name: use latest, best or epoch_name(n)")
        if _EPOCH.fullmatch(name) and self.keep == 0:
            raise ValueError(f"'{name}': this store keeps no epoch files (checkpoint.keep is 0)")
        if missing := missing_keys(payload):
            raise TypeError(f"checkpoint payload lacks {missing}")
        check_plain(dict(payload), "checkpoint")
        check_plain(dict(replay or {}), "replay")
        target = self.folder / f"{name}.pt"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            remove_leftovers(self.folder)
            manifest = self._manifest()
            reference = None if replay is None else self._write_replay(replay, int(payload["epoch"]))
            self._replace(target, {**payload, "replay": reference}, manifest)
            self._forget_old_epochs(manifest)
            self._remove_unreferenced(manifest)
        except OSError as error:
            raise refused(target, error) from error
        return target

    def _manifest(self) -> Manifest:
        """The manifest to go on writing; a damaged one is kept as `manifest.damaged.json`."""
        try:
            return read_manifest(self.folder)
        except CheckpointError:
            os.replace(self.folder / MANIFEST, self.folder / "manifest.damaged.json")
            return {}

    def _write_replay(self, state: Mapping[str, Any], epoch: int) -> dict[str, Any]:
        """Write the buffer under a name never used before; what a checkpoint says of it."""
        target = self.folder / f"replay-{epoch_name(epoch)}-{secrets.token_hex(4)}.pt"
        with StagedFile(target) as staged:
            torch.save({"format": REPLAY_FORMAT, "version": REPLAY_VERSION, "state": dict(state)}, staged)  # type: ignore[arg-type]
            staged.commit()
        return {"file": target.name, "sha256": staged.sha256}

    def _replace(self, target: Path, payload: dict[str, Any], manifest: Manifest) -> None:
        replay = None if payload["replay"] is None else str(payload["replay"]["file"])
        accepted = manifest.get(target.name, [])
        if not accepted and target.exists():  # what no manifest lists is accepted until it is replaced
            accepted = [Entry(file_sha256(target), target.stat().st_size, -1, None)]
        staged = StagedFile(target)
        try:
            with staged:
                torch.save({**payload, "format": FORMAT, "version": VERSION}, staged)  # type: ignore[arg-type]
                staged.finish()
                entry = Entry(staged.sha256, staged.size, int(payload["epoch"]), replay)
                manifest[target.name] = [*accepted, entry]
                write_manifest(self.folder, manifest)
                staged.commit()
        except BaseException:  # clean up whatever ended it, an interrupt too, and pass it on
            if replay is not None and not staged.committed:
                (self.folder / replay).unlink(missing_ok=True)
            raise
        manifest[target.name] = [entry]
        write_manifest(self.folder, manifest)

    def _forget_old_epochs(self, manifest: Manifest) -> None:
        """Drop the oldest epoch files: the file first, so that the manifest never lacks a living one."""
        if self.keep is None:
            return
        epochs = sorted((n for n in manifest if _EPOCH.fullmatch(n[:-3])), key=lambda n: int(n[5:-3]))
        old = epochs[: max(len(epochs) - self.keep, 0)]
        for name in old:
            (self.folder / name).unlink(missing_ok=True)
            del manifest[name]
        if old:
            write_manifest(self.folder, manifest)

    def _remove_unreferenced(self, manifest: Manifest) -> None:
        """Delete buffers that no checkpoint needs, unless a checkpoint is unlisted: it may need one."""
        if any(name not in manifest for name in names(self.folder)):
            return
        needed = {entry.replay for entries in manifest.values() for entry in entries}
        for file in self.folder.glob("replay-*.pt"):
            if file.name not in needed:
                file.unlink(missing_ok=True)
        sync_folder(self.folder)


def check_free(path: Path, *, overwrite: bool) -> None:
    """Make sure that `path` may be written, before anything is computed. Raises CheckpointError."""
    if path.suffix != ".pt":
        raise CheckpointError(f"{path}: checkpoints end in .pt. Give --out such a name.")
    if path.is_dir() or (path.exists() and not overwrite):
        raise CheckpointError(f"{path}: exists. Give another --out, or --overwrite to replace it.")
    if path.name in read_manifest(path.parent):
        raise CheckpointError(f"{path}: belongs to the run in that folder. Give another --out.")


def write_checkpoint(path: Path, payload: Mapping[str, Any]) -> str:
    """Write `payload` as a checkpoint that `flowmbpo.checkpoints.load.load` reads; returns its SHA-256.

    Raises StorageError when the disk refuses: nothing half-written stays.
    """
    check_plain(payload, "payload")
    path.parent.mkdir(parents=True, exist_ok=True)
    with StagedFile(path) as staged:
        torch.save({**payload, "replay": None, "format": FORMAT, "version": VERSION}, staged)  # type: ignore[arg-type]
        staged.commit()
    return staged.sha256
