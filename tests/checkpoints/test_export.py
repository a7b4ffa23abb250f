"""Exported folders: everything comes back bit for bit, and damage is found."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from flowmbpo.checkpoints.export import export_checkpoint, read_export
from flowmbpo.checkpoints.importers.conversion import import_checkpoint
from flowmbpo.checkpoints.load import load
from flowmbpo.checkpoints.save import write_checkpoint
from flowmbpo.envs.resolve import resolve
from flowmbpo.errors import CheckpointError, ConfigError
from flowmbpo.presets.load import load_experiment
from flowmbpo.runs.start import initial_agent


@pytest.fixture
def checkpoint(tmp_path) -> Path:
    """A small checkpoint with everything that an export takes along, and what it leaves."""
    config = load_experiment("quickstart", task="walker-stand")
    state = initial_agent(config, resolve(config.task).spec).state_dict()
    state["reward_normalizer.moments.total"] += 1e-12  # float64: its last bits must survive
    tensor = torch.arange(6.0).reshape(2, 3).t()  # not contiguous
    planner = {"kind": "tdmpc2", "pi": {"0.weight": tensor}, "q": {"0.weight": tensor[:2]}, "log_std_min": -10.0}
    payload = {
        "config": config.model_dump(mode="json"),
        "epoch": 12,
        "agent_steps": 3456,
        "env_steps": 6912,
        "agent": state,
        "planner": planner,
        "imported": {
            **{"format": "tdmpc2", "size": "5M", "file": "x.pt", "sha256": "ab", "dropped": ["_target_Qs"]},
            **{"untrained": ["actor"], "notes": ["A note."]},
        },
        "optimisers": {"actor": {"state": {}}},
    }
    write_checkpoint(tmp_path / "mine.pt", payload)
    return tmp_path / "mine.pt"


def equal(a, b):
    """Same structure, and the same bits."""
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and a.shape == b.shape and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    return a == b


def test_export_and_import_give_the_same_bits(checkpoint, tmp_path):
    export_checkpoint(checkpoint, tmp_path / "folder")
    outcome = import_checkpoint(tmp_path / "folder", out=tmp_path / "back.pt")
    assert outcome["format"] == "flowmbpo-export" and outcome["untrained"] == ["actor"] and outcome["planner"]
    before, after = load(checkpoint).payload, load(tmp_path / "back.pt").payload
    kept = ("config", "epoch", "agent_steps", "env_steps", "agent", "planner", "imported")
    assert all(equal(before[key], after[key]) for key in kept)
    assert "optimisers" not in after
    export_checkpoint(tmp_path / "back.pt", tmp_path / "again")
    for name in ("config.yaml", "README.md"):
        assert (tmp_path / "folder" / name).read_bytes() == (tmp_path / "again" / name).read_bytes()


def test_card_says_what_it_is_and_how_to_load_it(checkpoint, tmp_path):
    export_checkpoint(checkpoint, tmp_path / "folder")
    card = (tmp_path / "folder" / "README.md").read_text()
    for text in (
        "walker-stand",
        "12 epochs, 3,456 agent steps (6,912 environment",
        "**untrained**",
        "checkpoint import",
        "Licence",
    ):
        assert text in card
    assert "| encoder |" in card and "| total |" in card


@pytest.mark.parametrize("name", ["model.safetensors", "config.yaml"])
def test_one_flipped_bit_is_found(checkpoint, tmp_path, name):
    export_checkpoint(checkpoint, tmp_path / "folder")
    file = tmp_path / "folder" / name
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    with pytest.raises(CheckpointError, match="SHA-256"):
        import_checkpoint(tmp_path / "folder", out=tmp_path / "back.pt")
    assert not (tmp_path / "back.pt").exists()


@pytest.mark.parametrize("kept", [0, 1])
def test_a_truncated_list_of_hashes_is_found(checkpoint, tmp_path, kept):
    export_checkpoint(checkpoint, tmp_path / "folder")
    sums = tmp_path / "folder" / "SHA256SUMS"
    sums.write_text("".join(sums.read_text().splitlines(keepends=True)[:kept]))
    with pytest.raises(CheckpointError, match="does not list"):
        read_export(tmp_path / "folder")


def test_another_config_is_found_without_the_list_of_hashes(checkpoint, tmp_path):
    export_checkpoint(checkpoint, tmp_path / "folder")
    (tmp_path / "folder" / "SHA256SUMS").unlink()
    import_checkpoint(tmp_path / "folder", out=tmp_path / "back.pt")
    config = tmp_path / "folder" / "config.yaml"
    config.write_text(config.read_text().replace("seed: 0", "seed: 1"))
    with pytest.raises(CheckpointError, match="is not the config"):
        read_export(tmp_path / "folder")


def test_foreign_and_incomplete_folders_are_refused(checkpoint, tmp_path):
    import safetensors.torch

    folder = tmp_path / "folder"
    export_checkpoint(checkpoint, folder)
    with pytest.raises(CheckpointError, match="not empty"):
        export_checkpoint(checkpoint, folder)
    with pytest.raises(CheckpointError, match=r"has no config\.yaml"):
        read_export(tmp_path)
    with pytest.raises(CheckpointError, match="a folder without"):
        import_checkpoint(tmp_path, out=tmp_path / "back.pt")
    with pytest.raises(ConfigError, match="--task-set mt30"):
        import_checkpoint(folder, out=tmp_path / "back.pt", task_set="mt30")
    (folder / "SHA256SUMS").unlink()
    safetensors.torch.save_file({"x": torch.zeros(1)}, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match="is no `flowmbpo-export`"):
        read_export(folder)
    (folder / "model.safetensors").write_bytes(b"short")
    with pytest.raises(CheckpointError, match="damaged"):
        read_export(folder)
