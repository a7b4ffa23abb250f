"""Damaged, foreign and hostile files: refused by name, never believed, never run."""

from __future__ import annotations

import os
import pickle
import random
import shutil
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from flowmbpo.checkpoints.load import load
from flowmbpo.checkpoints.save import CheckpointStore
from flowmbpo.errors import CheckpointError

POSITIONS = 100


def payload(**extra: Any) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    weights = {"w": torch.randn(16, 8, generator=generator), "b": torch.randn(16, generator=generator)}
    return {"config": {"name": "small"}, "epoch": 7, "agent_steps": 70, "env_steps": 140, "agent": weights, **extra}


def equal(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(equal(a[k], b[k]) for k in a)
    return type(a) is type(b) and bool(a == b)


def flips(path: Path, positions: Iterable[int] | None = None) -> Iterator[int]:
    """Write `path` anew for each bit position (default: 100 random ones), that bit flipped; restores it."""
    sound = path.read_bytes()
    chooser = random.Random(0)
    for position in positions or [chooser.randrange(8 * len(sound)) for _ in range(POSITIONS)]:
        data = bytearray(sound)
        data[position // 8] ^= 1 << (position % 8)
        path.write_bytes(data)
        yield position
    path.write_bytes(sound)


def test_every_flipped_bit_is_noticed_beside_a_manifest(tmp_path: Path) -> None:
    path = CheckpointStore(tmp_path).save("latest", payload())
    for position in flips(path):
        with pytest.raises(CheckpointError, match=r"latest\.pt: does not have the SHA-256"):
            load(path)
            pytest.fail(f"bit {position} went unnoticed")
    assert load(path).verified


@pytest.mark.parametrize(
    "part", ["anywhere", "parts of the directory", pytest.param("directory", marks=pytest.mark.slow)]
)
def test_flipped_bits_of_a_lone_file_change_nothing_unnoticed(tmp_path: Path, part: str) -> None:
    path = tmp_path / "lone.pt"
    shutil.copy(CheckpointStore(tmp_path / "run").save("latest", payload()), path)
    sound, noticed = load(path).payload, 0
    data = path.read_bytes()
    entries = [place for place in range(len(data)) if data.startswith(b"PK\x01\x02", place)]
    attributes = [bit for entry in entries for bit in range(8 * (entry + 38), 8 * (entry + 42))]
    directory = range(8 * entries[0], 8 * len(data), 1 if part == "directory" else 13)
    bits = sorted({*directory, *attributes})
    for position in flips(path, None if part == "anywhere" else bits):
        try:
            altered = load(path).payload
        except CheckpointError as error:
            assert "lone.pt" in str(error)
            noticed += 1
        else:
            assert equal(sound, altered), f"bit {position} changed the content unnoticed"
    assert noticed > 0
    assert not load(path).verified


def test_plain_torch_load_would_have_believed_a_flipped_bit(tmp_path: Path) -> None:
    """The reason for the checks above: torch reads altered weights without a word."""
    path = CheckpointStore(tmp_path).save("latest", payload())
    data = bytearray(path.read_bytes())
    data[data.index(payload()["agent"]["w"].numpy().tobytes()) + 5] ^= 1
    path.write_bytes(data)
    assert not equal(torch.load(path, weights_only=True)["agent"], payload()["agent"])
    for verified_by in ("manifest", "archive"):
        if verified_by == "archive":
            (tmp_path / "manifest.json").unlink()
        with pytest.raises(CheckpointError, match="damaged"):
            load(path)


@pytest.mark.parametrize("kept", [0.0, 0.3, 0.99])
@pytest.mark.parametrize("lone", [False, True])
def test_truncated_file_is_refused_and_an_intact_one_is_named(tmp_path: Path, kept: float, lone: bool) -> None:
    store = CheckpointStore(tmp_path)
    store.save("best", payload())
    path = store.save("latest", payload())
    if lone:
        path = path.rename(tmp_path / "copy.pt")
    os.truncate(path, int(kept * path.stat().st_size))
    with pytest.raises(CheckpointError, match=rf"{path.name}: .*truncated.*best\.pt"):
        load(path)


def test_replaced_file_of_equal_size_is_refused(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    path = store.save("latest", payload())
    path.write_bytes(bytes(path.stat().st_size))
    with pytest.raises(CheckpointError, match=r"SHA-256.*restore it from a copy"):
        load(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"weights": torch.zeros(2)}, "no `format: flowmbpo-checkpoint`.*checkpoint import FILE"),
        ([1, 2], "no `format: flowmbpo-checkpoint`.*checkpoint import FILE"),
        (payload(format="flowmbpo-checkpoint", version=99), "format version 99"),
        (torch.nn.Linear(1, 1), "holds Python objects"),
    ],
)
def test_foreign_torch_file_is_refused(tmp_path: Path, content: Any, message: str) -> None:
    path = tmp_path / "foreign.pt"
    torch.save(content, path)
    with pytest.raises(CheckpointError, match=rf"foreign\.pt: .*{message}"):
        load(path)


def test_text_file_and_other_archives_are_refused(tmp_path: Path) -> None:
    text = tmp_path / "notes.pt"
    text.write_text("hello")
    with pytest.raises(CheckpointError, match=r"notes\.pt: is not a complete checkpoint archive"):
        load(text)
    with zipfile.ZipFile(tmp_path / "folder.pt", "w") as archive:
        archive.writestr("notes.txt", "hello")
    with pytest.raises(CheckpointError, match=r"folder\.pt: cannot be read as a checkpoint"):
        load(tmp_path / "folder.pt")
    writer = torch._C.PyTorchFileWriter(str(tmp_path / "model.pt"))
    writer.write_record("notes", b"hello", 5)
    writer.write_end_of_file()
    with pytest.raises(CheckpointError, match=r"model\.pt: cannot be read as a checkpoint"):
        load(tmp_path / "model.pt")


class Hostile:
    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (self.command,)


@pytest.mark.parametrize("legacy", [False, True])
def test_code_in_a_checkpoint_is_not_run(tmp_path: Path, legacy: bool) -> None:
    path, trace = tmp_path / "hostile.pt", tmp_path / "ran"
    torch.save({"format": Hostile(f"touch {trace}")}, path, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(CheckpointError, match=r"hostile\.pt"):
        load(path)
    assert not trace.exists()
    pickle.loads(pickle.dumps(Hostile(f"touch {trace}")))
    assert trace.exists(), "the payload itself works: the load is what stopped it"
