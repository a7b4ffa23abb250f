"""`flowmbpo checkpoint`: inspect, import and export as a user runs them."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

sys.path.append(str(Path(__file__).parents[1] / "checkpoints" / "importers"))

import published


@pytest.fixture
def source(tmp_path):
    """A 1M MT30 file in TD-MPC2's current layout."""
    torch.save(published.current_file(published.widths("1M", "mt30"), "mt30"), tmp_path / "model.pt")
    return tmp_path / "model.pt"


def test_published_file_is_inspected(command, source):
    document = command("checkpoint", "inspect", source, "--json").document
    assert (document["kind"], document["format"], document["size"]) == ("published", "tdmpc2-current", "1M")
    assert (document["task_set"], document["tasks"], document["q_functions"]) == ("mt30", 30, 2)
    assert document["parameters"]["total"] == 1_426_427
    assert document["kept"] == ["encoder", "dynamics", "reward", "task_embedding", "planner"]
    assert document["dropped"] == ["_detach_Qs_params", "_target_Qs_params"]


def test_import_inspect_export_and_back(command, source):
    imported = command("checkpoint", "import", source, "--json").document
    assert imported["checkpoint"] == "tdmpc2-current-mt30-1m.pt"
    own = command("checkpoint", "inspect", imported["checkpoint"], "--json").document
    assert own["kind"] == "flowmbpo" and own["imported"]["untrained"] == ["actor", "critic"]
    assert own["config"]["task"] == "mt30" and own["config"]["phase"] == "stage-a"
    assert own["planner"]["kind"] == "tdmpc2"
    assert own["planner"]["parameters"]["pi"] == imported["parameters"]["policy_prior"]
    assert own["sha256"] == imported["checkpoint_sha256"]
    exported = command("checkpoint", "export", imported["checkpoint"], "shared", "--json").document
    assert exported["files"] == ["README.md", "SHA256SUMS", "config.yaml", "model.safetensors"]
    assert command("checkpoint", "inspect", "shared", "--json").document["parameters"] == own["parameters"]
    assert command("checkpoint", "import", "shared", "--out", "back.pt").code == 0
    first, second = (torch.load(file, weights_only=True)["agent"] for file in (imported["checkpoint"], "back.pt"))
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_text_for_people(command, source):
    inspected = command("checkpoint", "inspect", source)
    assert inspected.code == 0
    for text in ("tdmpc2-current", "mt30", "1,426,427", "untrained"):
        assert text in inspected.stdout
    imported = command("checkpoint", "import", source, "--task", "walker-run", "--no-planner")
    assert imported.code == 0 and "_pi, _Qs" in imported.stdout


def test_failures_are_one_document(command, source):
    finished = command("checkpoint", "import", source, "--task-set", "mt80", "--json")
    assert finished.code == 2 and finished.document["error"]["kind"] == "checkpoint"
    assert "mt30" in finished.document["error"]["message"]
    assert command("checkpoint", "inspect", "absent.pt", "--json").code == 2
