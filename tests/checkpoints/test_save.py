"""What a save leaves on the disk, and what a load makes of it."""

from __future__ import annotations

import errno
import json
import os
import resource
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from flowmbpo import files as atomic
from flowmbpo.checkpoints.load import load, load_replay, resolve
from flowmbpo.checkpoints.save import CheckpointStore, epoch_name
from flowmbpo.errors import CheckpointError, StorageError


def payload(epoch: int = 1, **extra: Any) -> dict[str, Any]:
    return {
        "config": {"name": "small"},
        "epoch": epoch,
        "agent_steps": 10 * epoch,
        "env_steps": 20 * epoch,
        "agent": {"w": torch.arange(6.0).view(2, 3) + epoch},
        **extra,
    }


def replay(epoch: int = 1) -> dict[str, Any]:
    return {"obs": torch.full((4, 2), float(epoch)), "size": 4}


def names(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir())


def test_saved_checkpoint_comes_back_equal_and_verified(tmp_path: Path) -> None:
    path = CheckpointStore(tmp_path).save("latest", payload(3), replay(3))
    loaded = load(path)
    assert loaded.verified
    assert loaded.payload["epoch"] == 3
    assert torch.equal(loaded.payload["agent"]["w"], payload(3)["agent"]["w"])
    buffer = load_replay(loaded)
    assert buffer is not None and torch.equal(buffer["obs"], replay(3)["obs"])


def test_optimiser_state_survives_a_weights_only_load(tmp_path: Path) -> None:
    layer = torch.nn.Linear(2, 1)
    optimiser = torch.optim.Adam(layer.parameters(), lr=1e-3)
    layer(torch.ones(1, 2)).sum().backward()
    optimiser.step()
    path = CheckpointStore(tmp_path).save("latest", payload(optimisers={"model": optimiser.state_dict()}))
    restored = torch.optim.Adam(layer.parameters(), lr=1.0)
    restored.load_state_dict(load(path).payload["optimisers"]["model"])
    assert restored.param_groups[0]["lr"] == 1e-3
    first = next(iter(restored.state.values()))
    assert torch.equal(first["exp_avg"], optimiser.state[next(layer.parameters())]["exp_avg"])


def test_second_save_replaces_the_checkpoint_and_removes_the_old_replay(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    store.save("latest", payload(1), replay(1))
    store.save("latest", payload(2), replay(2))
    assert load(tmp_path / "latest.pt").payload["epoch"] == 2
    buffers = [name for name in names(tmp_path) if name.startswith("replay-")]
    assert len(buffers) == 1 and buffers[0].startswith("replay-epoch000002-")
    entries = json.loads((tmp_path / "manifest.json").read_text())["files"]["latest.pt"]
    assert len(entries) == 1


def test_only_the_newest_epoch_files_are_kept(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep=2)
    for epoch in (999_999, 1_000_000, 1_000_001):
        store.save(epoch_name(epoch), payload(epoch))
    assert [n for n in names(tmp_path) if n.startswith("epoch")] == ["epoch1000000.pt", "epoch1000001.pt"]
    assert load(tmp_path / "epoch1000000.pt").verified


def test_epoch_file_is_refused_where_none_are_kept(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"checkpoint\.keep"):
        CheckpointStore(tmp_path, keep=0).save(epoch_name(1), payload())


@pytest.mark.parametrize("value", [np.float64(1.0), np.zeros(2), {1, 2}, object(), b"raw"])
def test_value_that_would_need_pickle_is_refused_with_its_place(tmp_path: Path, value: object) -> None:
    with pytest.raises(TypeError, match=r"checkpoint\.env\.state\[1\]"):
        CheckpointStore(tmp_path).save("latest", payload(env={"state": [0, value]}))
    assert names(tmp_path) == []


def test_payload_without_its_required_keys_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="agent_steps, env_steps, agent"):
        CheckpointStore(tmp_path).save("latest", {"config": {}, "epoch": 1})


def test_unknown_checkpoint_name_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"\.\./latest"):
        CheckpointStore(tmp_path).save("../latest", payload())


@pytest.mark.parametrize("failing", ["write", "fsync", "replace"])
def test_full_disk_names_the_file_and_keeps_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    store = CheckpointStore(tmp_path)
    store.save("latest", payload(1), replay(1))
    before = names(tmp_path)

    def full(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        if failing == "write":
            real = atomic.StagedFile.__enter__

            def enter(self: atomic.StagedFile) -> atomic.StagedFile:
                staged = real(self)
                staged._file.close()
                staged._file = open("/dev/full", "wb", buffering=0)  # noqa: SIM115
                return staged

            patch.setattr(atomic.StagedFile, "__enter__", enter)
        else:
            patch.setattr(atomic.os, failing, full)
        with pytest.raises(StorageError, match=r"\.pt: cannot be written: No space left"):
            store.save("latest", payload(2), replay(2))
    assert names(tmp_path) == before
    loaded = load(tmp_path / "latest.pt")
    assert loaded.payload["epoch"] == 1 and loaded.verified
    assert load_replay(loaded) is not None
    store.save("latest", payload(3), replay(3))
    assert load(tmp_path / "latest.pt").payload["epoch"] == 3


def test_real_file_size_limit_keeps_the_old_checkpoint(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    store.save("latest", payload(1))
    report, answer = os.pipe()
    child = os.fork()
    if child == 0:  # it must never return into the test runner
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
            store.save("latest", payload(2, big=torch.ones(200_000)))
        except StorageError as error:
            os.write(answer, str(error).encode())
        finally:
            os._exit(0)
    os.close(answer)
    os.waitpid(child, 0)
    with open(report, "rb") as pipe:
        assert b"latest.pt: cannot be written: File too large" in pipe.read()
    assert names(tmp_path) == ["latest.pt", "manifest.json"]
    assert load(tmp_path / "latest.pt").payload["epoch"] == 1


def test_checkpoint_without_manifest_stays_loadable_through_a_save(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    store.save("latest", payload(1), replay(1))
    (tmp_path / "manifest.json").unlink()
    store.save("best", payload(1))
    loaded = load(tmp_path / "latest.pt")
    assert not loaded.verified  # no manifest lists it, its own checksums vouch for it
    assert load_replay(loaded) is not None, "an unlisted checkpoint's buffer must not be cleaned up"
    store.save("latest", payload(2), replay(2))
    assert load(tmp_path / "latest.pt").verified


def test_damaged_manifest_is_reported_then_set_aside_by_saving(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    store.save("latest", payload(1))
    (tmp_path / "manifest.json").write_text('{"format": "flowmbpo-manifest"')
    with pytest.raises(CheckpointError, match=r"manifest\.json: is damaged"):
        load(tmp_path / "latest.pt")
    store.save("latest", payload(2))
    assert load(tmp_path / "latest.pt").verified
    assert (tmp_path / "manifest.damaged.json").exists()


def test_run_directory_and_checkpoints_folder_resolve_to_the_latest(tmp_path: Path) -> None:
    path = CheckpointStore(tmp_path / "checkpoints").save("latest", payload())
    assert resolve(tmp_path) == path
    assert resolve(tmp_path / "checkpoints") == path
    assert resolve(path) == path


def test_missing_checkpoint_error_lists_what_there_is(tmp_path: Path) -> None:
    CheckpointStore(tmp_path).save("best", payload())
    with pytest.raises(CheckpointError, match=r"no latest\.pt; there are best\.pt"):
        resolve(tmp_path)
    with pytest.raises(CheckpointError, match=r"absent\.pt: does not exist.*best\.pt"):
        resolve(tmp_path / "absent.pt")


def test_a_missing_bare_name_lists_this_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    CheckpointStore(tmp_path).save("best", payload())
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match=r"In this folder: best\.pt"):
        resolve(Path("absent.pt"))
    with pytest.raises(CheckpointError, match=r"In that folder: best\.pt"):
        resolve(tmp_path / "absent.pt")


def test_missing_replay_is_an_error_for_resume_only(tmp_path: Path) -> None:
    path = CheckpointStore(tmp_path).save("latest", payload(), replay())
    next(tmp_path.glob("replay-*.pt")).unlink()
    loaded = load(path)
    with pytest.raises(CheckpointError, match=r"replay-epoch000001-\w+\.pt: is missing"):
        load_replay(loaded)


def test_altered_replay_is_refused(tmp_path: Path) -> None:
    path = CheckpointStore(tmp_path).save("latest", payload(), replay())
    buffer = next(tmp_path.glob("replay-*.pt"))
    data = bytearray(buffer.read_bytes())
    data[len(data) // 2] ^= 1
    buffer.write_bytes(data)
    with pytest.raises(CheckpointError, match="SHA-256 differs"):
        load_replay(load(path))


def test_reader_meets_a_writer_without_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file is replaced between the reader's open and its look at the manifest."""
    store = CheckpointStore(tmp_path)
    store.save("latest", payload(1))
    from flowmbpo.checkpoints import load as loader

    real, saved = loader._sha256, []

    def slow(file: Any) -> str:
        digest = real(file)
        if not saved:
            saved.append(store.save("latest", payload(2)))
        return digest

    monkeypatch.setattr(loader, "_sha256", slow)
    loaded = load(tmp_path / "latest.pt")
    assert loaded.payload["epoch"] == 2 and loaded.verified
