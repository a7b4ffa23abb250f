"""`flowmbpo data`: what people and scripts get to see."""

from __future__ import annotations

import pytest
import torch
from tensordict import TensorDict

from flowmbpo.data.dataset.writer import DatasetWriter
from flowmbpo.errors import StorageError
from flowmbpo_cli.datasets import PUBLISHED


@pytest.fixture
def chunks(tmp_path):
    """A folder `mt30` with one chunk of walker-stand and reacher-easy."""
    folder = tmp_path / "source" / "mt30"
    folder.mkdir(parents=True)
    obs = torch.randn(3, 501, 24, generator=torch.Generator().manual_seed(0))
    obs[1, :, 6:] = 0.0
    action = torch.zeros(3, 501, 6)
    action[:, 0] = torch.nan
    reward = torch.ones(3, 501) * torch.tensor([[1.0], [2.0], [3.0]])
    reward[:, 0] = torch.nan
    task = torch.tensor([0, 4, 0])[:, None].expand(3, 501).contiguous()
    content = {"obs": obs, "action": action, "reward": reward, "task": task}
    torch.save(TensorDict(content, batch_size=(3, 501)), folder / "chunk_0.pt")
    return folder


@pytest.fixture
def dataset(command, chunks, tmp_path):
    assert command("data", "convert", chunks, "converted").code == 0
    return tmp_path / "converted"


def test_convert_prints_one_document(command, chunks):
    finished = command("data", "convert", chunks, "out", "--json")
    assert finished.code == 0
    document = finished.document
    assert (document["format"], document["set"], document["episodes"], document["transitions"]) == (
        *("tdmpc2", "mt30"),
        *(3, 1500),
    )
    assert document["source"]["files"][0]["name"] == "chunk_0.pt"
    assert "chunk_0.pt (1 of 1): 100%" in finished.stderr


def test_convert_keeps_so_many_episodes_of_each_task(command, chunks):
    document = command("data", "convert", chunks, "out", "--limit-episodes-per-task", 1, "--json").document
    assert document["episodes"] == 2


def test_convert_says_the_right_folder(command, chunks):
    finished = command("data", "convert", chunks.parent, "out", "--json")
    assert finished.code == 2
    assert finished.document["error"]["kind"] == "data"
    assert f"Did you mean {chunks}?" in finished.document["error"]["message"]


def test_convert_refuses_a_finished_dataset(command, chunks, dataset):
    finished = command("data", "convert", chunks, dataset)
    assert finished.code == 2
    assert "holds a finished dataset" in finished.stderr


def test_a_full_disk_is_one_message(command, chunks, monkeypatch):
    def full(*_, **__):
        raise StorageError("rows: cannot be written: No space left on device.")

    monkeypatch.setattr(DatasetWriter, "add_many", full)
    finished = command("data", "convert", chunks, "out")
    assert finished.code == 1
    assert "No space left on device. The same command goes on with this conversion" in finished.stderr
    monkeypatch.undo()


def test_inspect_shows_tasks_returns_ranges_and_sources(command, dataset):
    document = command("data", "inspect", dataset, "--json").document
    assert [task["name"] for task in document["tasks"]] == ["walker-stand", "reacher-easy"]
    walker = document["tasks"][0]
    assert (walker["episodes"], walker["transitions"], walker["length"]) == (2, 1000, [500, 500])
    assert walker["return_mean"] == pytest.approx(1000.0)
    assert walker["return_quantiles"] == pytest.approx([500.0, 750.0, 1000.0, 1250.0, 1500.0])
    assert walker["reward"] == [1.0, 3.0]  # the final row's 0 is no reward
    assert walker["action"] == [0.0, 0.0]
    assert len(document["without_episodes"]) == 28
    shown = command("data", "inspect", dataset).stdout
    for word in ("walker-stand", "reacher-easy", "chunk_0.pt", "1,500", "acrobot-swingup"):
        assert word in shown


def test_inspect_draws_a_picture(command, dataset, tmp_path):
    import matplotlib.image

    finished = command("data", "inspect", dataset, "--plot", "picture.png")
    assert finished.code == 0
    picture = matplotlib.image.imread(tmp_path / "picture.png")
    assert picture.shape[2] >= 3
    assert len(set(map(bytes, picture.reshape(-1, picture.shape[2])[::7]))) > 20
    assert command("data", "inspect", dataset, "--plot", "picture.jpg").code == 2


def test_verify_finds_a_flipped_bit_and_exits_with_1(command, dataset):
    intact = command("data", "verify", dataset, "--json")
    assert (intact.code, intact.document["ok"], intact.document["findings"]) == (0, True, [])
    shard = next(dataset.glob("walker-stand/*.h5"))
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    damaged = command("data", "verify", dataset, "--json")
    assert (damaged.code, damaged.document["ok"]) == (1, False)
    assert damaged.document["findings"][0]["file"] == "walker-stand/00000.h5"
    found, summary = command("data", "verify", dataset).stdout.splitlines()
    assert found.startswith("walker-stand/00000.h5: has SHA-256 ")
    assert summary.startswith(f"{dataset}: 1 finding. Restore damaged files from a copy")
    shard.unlink()
    (dataset / "walker-stand" / "99999.h5").touch()
    summary = command("data", "verify", dataset).stdout.splitlines()[-1]
    assert "2 findings. " in summary and "do not belong" in summary


def test_where_names_page_layout_and_command_of_everything_published(command):
    document = command("data", "where", "--json").document
    assert {entry["kind"] for entry in document["published"]} == {"dataset", "checkpoint"}
    assert all(
        entry["command"].startswith(("flowmbpo data convert", "flowmbpo checkpoint")) for entry in document["published"]
    )
    shown = command("data", "where").stdout
    for entry in PUBLISHED:
        assert entry["name"] in shown
        assert entry["page"] in shown


def test_collect_records_and_names_what_it_recorded(command):
    options = ("--task", "toy-pendulum-swingup", "--policy", "random", "--policy", "noise@3", "--episodes", 2)
    finished = command("data", "collect", "out", *options, "--num-envs", 2, "--json")
    assert finished.code == 0
    document = finished.document
    assert [policy["kind"] for policy in document["policies"]] == ["random", "noise"]
    assert [row["episodes"] for row in document["recorded"]] == [2, 3]
    assert "toy-pendulum-swingup, noise: 3 episodes, return" in finished.stderr
    shown = command("data", "inspect", "out").stdout
    assert "noise" in shown
    assert "toy-pendulum-swingup" in shown


@pytest.mark.parametrize("options", [(), ("--set", "mini3", "--task", "walker-stand")])
def test_collect_needs_a_set_or_a_task(command, options):
    finished = command("data", "collect", "out", *options)
    assert finished.code == 2
    assert "name a task set (--set) or one task (--task), not both" in finished.stderr


def test_collect_names_the_nearest_set(command):
    finished = command("data", "collect", "out", "--set", "mini4")
    assert finished.code == 2
    assert "Did you mean 'mini3'?" in finished.stderr


def test_the_commands_are_listed(command):
    shown = command("data").stdout
    for name in ("collect", "convert", "inspect", "verify", "where"):
        assert name in shown
