"""`--dry-run`: everything that can be known beforehand, and nothing done."""

import json

import pytest
import torch

from flowmbpo.checkpoints.load import load
from flowmbpo.envs.episodes import assign_tasks
from flowmbpo.envs.resolve import resolve
from flowmbpo.models.agent import seeded_agent
from flowmbpo.presets.load import load_experiment
from flowmbpo.runs.dry_run import dry_run, total_steps
from flowmbpo.training import learner


def test_nothing_is_written_trained_or_drawn(config, tmp_path, monkeypatch):
    def forbidden(*args, **kwargs):
        raise AssertionError("a dry run steps no optimiser and no environment")

    monkeypatch.setattr(learner, "update_model", forbidden)
    monkeypatch.setattr(torch.optim.Adam, "step", forbidden)
    before = torch.get_rng_state()
    dry_run(config())
    assert torch.equal(before, torch.get_rng_state())
    assert list(tmp_path.iterdir()) == []


def test_document_agrees_with_the_agent_and_the_run(config, train, tmp_path):
    document = dry_run(config())
    assert json.loads(json.dumps(document)) == document
    agent = seeded_agent(config(), resolve(config().task).spec)
    assert document["parameters"]["total"] == sum(p.numel() for p in agent.parameters())
    assert document["parameters"]["actor"] == sum(p.numel() for p in agent.actor.parameters())
    assert document["task"]["name"] == "toy-pendulum-swingup"
    assert document["device"] == "cpu"
    assert document["agent_steps"] == train(config(), out=tmp_path / "run").agent_steps
    held = load(tmp_path / "run" / "checkpoints" / "latest.pt").payload["agent"]
    assert held.keys() == agent.state_dict().keys()


@pytest.mark.parametrize("preset", ["phase2-fullflow", "phase1-baseline"])
def test_paper_scale_presets_are_estimated_without_their_simulator(preset):
    document = dry_run(load_experiment(preset))
    assert (document["task"]["name"], document["task"]["simulator"]) == ("mujoco-ant", "mujoco")
    assert "no dflex is installed here" in document["task"]["notice"]
    assert 2e6 < document["parameters"]["total"] < 7e6
    assert abs(document["gap_to_mlp_gaussian_percent"]["model"]) <= 2.0
    assert abs(document["gap_to_mlp_gaussian_percent"]["actor"]) <= 2.0
    assert document["compute"]["flops"]["model_update"] > 1e9


def test_steps_of_the_whole_run_include_random_episodes(config):
    settings = config(**{"training.random_episodes": 2, "training.epochs": 10, "task.num_envs": 3})
    steps = 3 * (2 * 100 + 10 * 4)
    assert total_steps(settings, resolve(settings.task)) == {"agent_steps": steps, "env_steps": 2 * steps}


def test_one_member_of_a_set_needs_no_copy_of_the_others_and_counts_its_own_episodes():
    tasks = "task={name: null, set: mine, tasks: [walker-stand, mw-reach, toy-map-smooth], only: mw-reach, num_envs: 2}"
    settings = load_experiment("mini3-c-residual", [tasks, "training.random_episodes=1", "training.epochs=3"])
    report = dry_run(settings)
    assert report["agent_steps"] == 2 * (100 + 3 * 5)  # walker-stand's episodes have 500 steps
    assert report["env_steps"] == 2 * report["agent_steps"]
    assert report["task"]["tasks"] == ["mw-reach"]


def test_environment_steps_count_each_tasks_own_action_repeat(config):
    tasks = {
        "task.name": None,
        "task.set": "mine",
        "task.tasks": ["walker-stand", "toy-map-smooth"],
        "task.num_envs": 3,
    }
    settings = config(**tasks)
    task = resolve(settings.task)
    repeats = [task.spec.tasks[member].action_repeat for member in assign_tasks(task.spec, 3, settings.seed)]
    steps = total_steps(settings, task)
    assert sorted(set(repeats)) == [1, 2]
    assert steps["env_steps"] * len(repeats) == steps["agent_steps"] * sum(repeats)


def test_offline_runs_step_no_environment():
    assert dry_run(load_experiment("mini3-a-residual"))["agent_steps"] == 0
