"""What the benchmarks of single epochs measure: the published run, whole, and its parts."""

import csv
import importlib
import math
import sys
from pathlib import Path

import pytest

from flowmbpo.checkpoints.save import CheckpointStore
from flowmbpo.config.experiment import config_differences
from flowmbpo.data.dataset.reader import Dataset
from flowmbpo.presets.load import load_experiment, preset_info

FOLDER = Path(__file__).parents[2] / "benchmarks"
SMALL = ("model.latent_dim=16", "model.encoder.units=[16]", "training.wm_batch_size=8", "training.horizon=3")


@pytest.fixture
def stages(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    yield importlib.import_module("stage_epochs")
    for name in ("stage_epochs", "epochs"):
        sys.modules.pop(name, None)


@pytest.fixture
def epochs(stages):
    return sys.modules["epochs"]


def write_configs(stages, work):
    """Checkpoints that hold no weights: the configs in them are all that is read."""
    for name, (preset, _) in stages.SHAPES.items():
        payload = {
            "config": load_experiment(preset).model_dump(mode="json"),
            "epoch": 0,
            "agent_steps": 0,
            "env_steps": 0,
            "agent": {},
        }
        CheckpointStore(work / name / "checkpoint").save("latest", payload)


def test_all_35_presets_are_there_the_main_arms_first(stages):
    names = stages.all_presets()
    assert len(names) == len(set(names)) == 35
    assert set(names) <= {info.name for info in preset_info()}
    assert {name.split("-")[-1] for name in names[:21] if not name.endswith("-48m")} == {
        "baseline",
        "fullflow",
        "residual",
    }


def test_what_runs_differs_from_the_preset_only_in_what_the_benchmark_says(stages, tmp_path):
    write_configs(stages, tmp_path)
    assert len(stages.FAMILIES) == 7
    named = {"compute.threads", "device", "name", "task.only", "task.backend", "evaluation.at_start"}
    named |= {"training.random_episodes", "training.warmup_model_updates"}
    for family in stages.FAMILIES:
        preset = family.preset("fullflow")
        differences = config_differences(load_experiment(preset), stages.config_of(preset, tmp_path))
        keys = {difference.key for difference in differences}
        others = {key for key in keys if key not in named and key.split(".")[0] not in ("data", "initial")}
        assert others == set(), preset


def test_another_preset_is_refused(stages):
    with pytest.raises(SystemExit, match="phase2-baseline is none of the 48M presets"):
        stages.family_of("phase2-baseline")


def test_an_online_epoch_is_measured_in_parts(stages, tmp_path, monkeypatch):
    monkeypatch.setattr(
        stages, "FAMILIES", (stages.Family("quickstart", "train", overrides=(*stages.NO_START, *SMALL)),)
    )
    row = stages.measure("quickstart-baseline", tmp_path, 0.0)
    config = load_experiment("quickstart-baseline")
    assert row["agent_steps"] == 3 * config.task.num_envs
    assert row["model_updates"] == config.training.rounds * config.training.wm_iterations
    assert set(row) == set(stages.FIELDS)
    assert sum(row[f"{part}_s"] for part in stages.PARTS) == pytest.approx(row["epoch_s"])
    assert all(row[f"{part}_s"] > 0.0 for part in stages.PARTS)
    assert all(math.isfinite(row[f"loss_{name}"]) for name in stages.LOSSES)
    assert row["peak_rss_mb"] >= row["anonymous_mb"] > 0.0


def test_a_policy_alone_is_measured_on_made_up_data_and_an_untrained_checkpoint(stages, tmp_path, monkeypatch):
    family = stages.Family("mini3-policy", "policy", data="mini3", checkpoint="mini3", overrides=SMALL[2:])
    monkeypatch.setattr(stages, "FAMILIES", (family,))
    monkeypatch.setattr(stages, "SHAPES", {"mini3": ("mini3-b-baseline", 20)})
    stages.make_inputs(tmp_path)
    dataset = Dataset.open(tmp_path / "mini3" / "data")
    assert [task.episodes for task in dataset.tasks] == [stages.EPISODES] * 3
    row = stages.measure("mini3-policy-baseline", tmp_path, 0.0)
    assert row["task"] == "walker-stand"
    assert row["model_updates"] == row["agent_steps"] == 0
    assert "loss_dynamics" not in row and math.isfinite(row["loss_actor"])


def test_presets_that_the_table_holds_are_left_out(stages, tmp_path, monkeypatch, capsys):
    out = tmp_path / "rows.csv"
    stages.append(out, {"preset": "stage-a-baseline", "task": "mt30", "epoch_s": 1.23456789})
    stages.append(out, {"preset": "stage-b-baseline", "task": "mt30"})
    with out.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["preset"] for row in rows] == ["stage-a-baseline", "stage-b-baseline"]
    assert rows[0]["epoch_s"] == "1.23457"
    monkeypatch.setattr(stages, "make_inputs", lambda work: None)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr(
        sys, "argv", ["stage_epochs.py", "--out", str(out), "--presets", "stage-a-baseline", "stage-b-baseline"]
    )
    before = out.read_bytes()
    stages.main()
    assert out.read_bytes() == before
    assert len(capsys.readouterr().out.splitlines()) == 1  # the header


def test_timed_places_of_one_part_add_up_and_are_put_back(epochs):
    class Counter:
        calls = 0

        def one(self):
            self.calls += 1
            return self.calls

        def other(self):
            return self.one()

    counter = Counter()
    with epochs.timed([("part", counter, "one"), ("part", counter, "other")]) as spent:
        assert counter.other() == 1
    assert spent["part"].calls == 2
    assert counter.one() == 2 and spent["part"].calls == 2


def test_shares_of_an_epoch_add_up_to_one(epochs):
    config = load_experiment("quickstart-baseline", [*epochs.NO_START, *SMALL])
    row = epochs.measure(config, warm_up=True)
    assert set(row) == set(epochs.FIELDS)
    assert sum(row[part] for part in (*epochs.PARTS, "rest")) == pytest.approx(1.0)
    assert all(row[part] > 0.0 for part in epochs.PARTS)
    assert row["agent_steps"] == 3 * config.task.num_envs
