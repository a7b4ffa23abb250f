"""What a finished run leaves in its directory."""

import json

import pytest
import torch

from flowmbpo.checkpoints.load import load
from flowmbpo.envs.episodes import episode_seed
from flowmbpo.envs.resolve import resolve
from flowmbpo.presets.load import load_experiment
from flowmbpo.runs.directory import RUN_SCHEMA
from flowmbpo.runs.evaluate import EVALUATION_ENVS, SEED_BASE, evaluation_env, evaluation_seed
from flowmbpo.runs.session import FINAL
from flowmbpo.runs.train import train as start_training
from flowmbpo.tracking.sink import read_rows

CPU = torch.device("cpu")
EVERY_ROW = {
    "epoch",
    "agent_steps",
    "env_steps",
    "wall_s",
    "cpu_s",
    "train/return_mean",
    "actions/std",
    "actions/saturation",
    "nonfinite/count",
    "faults/count",
    "compute/nfe",
    "compute/index",
    "compute/flops",
    "speed/agent_steps_per_s",
    "speed/updates_per_s",
    "memory/rss_mb",
    *(f"loss/{part}" for part in ("dynamics", "reward", "actor", "critic")),
    *(f"{group}/{part}" for group in ("grad_norm", "lr") for part in ("actor", "critic", "model")),
}


@pytest.fixture
def run(swung):
    return swung


def test_directory_describes_the_run_completely(run, config):
    record = json.loads((run / "run.json").read_text())
    assert record["status"] == "done"
    assert record["outcome"]["run_dir"] == str(run)
    assert record["outcome"]["agent_steps"] == 4 * (100 + 4 * 4)
    assert record["outcome"]["env_steps"] == 2 * record["outcome"]["agent_steps"]
    assert record["schema_version"] == RUN_SCHEMA
    assert (record["env"], record["seed"], record["device"]) == ("toy-pendulum-swingup", 0, "cpu")
    assert record["command"] == ["flowmbpo", "train"]
    assert load_experiment(run / "config.yaml") == config(**{"task.name": "toy-pendulum-swingup"})
    assert "model" in (run / "logs" / "train.log").read_text()
    assert not (run / "nonfinite").exists()


def test_rows_hold_the_contracts_keys_and_the_evaluations_where_due(run):
    *rows, final = read_rows(run / "metrics.jsonl")
    assert [row["epoch"] for row in rows] == [1, 2, 3, 4]
    for row in rows:
        assert row.keys() >= EVERY_ROW
    assert ["eval/return_mean" in row for row in rows] == [False, True, False, True]
    assert rows[1]["eval/length_mean"] == 100
    flops = [row["compute/flops"] for row in rows]
    assert flops[1] - flops[0] == flops[2] - flops[1] > 0
    assert flops[0] > flops[1] - flops[0]  # the warm-up updates
    record = json.loads((run / "run.json").read_text())
    assert final["final/return_mean"] == record["outcome"]["final_return_mean"]


def test_best_is_the_checkpoint_of_the_highest_periodic_return(run):
    rows = [row for row in read_rows(run / "metrics.jsonl") if "eval/return_mean" in row]
    winner = max(rows, key=lambda row: row["eval/return_mean"])
    best = load(run / "checkpoints" / "best.pt").payload
    assert (best["best"], best["epoch"]) == (winner["eval/return_mean"], winner["epoch"])
    assert load(run / "checkpoints" / "latest.pt").payload["best"] == best["best"]


def test_no_two_evaluations_share_a_seed_with_each_other_or_with_training():
    largest = 1_000_000_000
    seeds = [evaluation_seed(seed, epoch) for seed in (0, 1, largest) for epoch in (1, 150_000, FINAL)]
    seeds += [SEED_BASE, SEED_BASE + largest, 0, largest]
    assert len(set(seeds)) == len(seeds)
    assert max(seeds) < 2**63


def words(*numbers):
    """A SeedSequence's entropy: 32-bit words, low ones first, padded with zeros to four at least."""
    cut = [number >> shift & 0xFFFFFFFF for number in numbers for shift in ((0, 32) if number >> 32 else (0,))]
    return cut + [0] * (4 - len(cut))


def test_evaluation_seeds_read_as_no_training_episode_word_by_word():
    largest = 1_000_000_000
    periodic = [evaluation_seed(s, epoch) for s in (0, 255, 256, largest) for epoch in (1, 150_000, FINAL)]
    named = [SEED_BASE, SEED_BASE + largest]
    for seed in periodic + named:
        low, high, copy, episode = words(seed, 3, 5)
        assert (copy, episode) == (3, 5)
        assert words(low, high, 3)[:3] == [low, high, 3]
        assert high >= 2**30  # where training's (seed, copy, episode, 0) has the copy
        assert words(low, high, copy, episode) == words(seed, copy, episode)
    assert {seed >> 32 for seed in periodic}.isdisjoint({seed >> 32 for seed in named})


def test_evaluation_runs_at_most_so_many_copies(config):
    assert evaluation_env(resolve(config().task), 3, 0, CPU).num_envs == 3
    assert evaluation_env(resolve(config().task), 1000, 0, CPU).num_envs == EVALUATION_ENVS


def test_stochastic_evaluation_is_seeded_and_draws_from_no_training_generator(train, config, figures, same, tmp_path):
    noisy = config(**{"evaluation.deterministic": False})
    first, second = (train(noisy, out=tmp_path / name) for name in "ab")
    plain = train(config(), out=tmp_path / "c")
    assert first.final_return_mean == second.final_return_mean != plain.final_return_mean
    assert same(figures(first)[0]["agent"], figures(plain)[0]["agent"])


def test_default_seed_of_eval_shares_no_episode_with_any_copy_in_training():
    words = episode_seed(SEED_BASE + 5, 3, 0).generate_state(4).tolist()
    for copy in range(2000):
        assert episode_seed(5, copy, 3).generate_state(4).tolist() != words


def test_high_cost_and_a_parity_gap_warn_on_the_terminal_and_in_the_log(config, tmp_path, capsys):
    settings = config(**{"high_cost": True, "cost": "days", "training.epochs": 1})
    start_training(settings, out=tmp_path / "run")
    shown = capsys.readouterr().err
    assert "Warning: tiny is marked high_cost: 116 agent steps and about" in shown
    assert "(days)" in shown
    assert "high_cost" in (tmp_path / "run" / "logs" / "train.log").read_text()
    start_training(config(**{"training.epochs": 1}), out=tmp_path / "plain")
    assert "Warning" not in capsys.readouterr().err
    wide = config(**{"training.epochs": 1, "model.dynamics": {"kind": "gaussian", "units": [16, 16], "parity": False}})
    start_training(wide, out=tmp_path / "wide")
    assert "not a comparison at equal size" in capsys.readouterr().err
