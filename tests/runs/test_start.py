"""What a run starts from; `--dry-run`: everything that can be known beforehand, and nothing done."""

import json

import pytest
import torch

from flowmbpo.checkpoints.load import load
from flowmbpo.config.sections import DataConfig
from flowmbpo.envs.episodes import assign_tasks
from flowmbpo.envs.resolve import resolve
from flowmbpo.errors import ConfigError
from flowmbpo.models.agent import seeded_agent
from flowmbpo.presets.load import load_experiment
from flowmbpo.runs import start
from flowmbpo.runs.start import dry_run, measure_rewards, pinned, total_steps
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
    assert document["task"]["name"] == "toy-two-goals"
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
    settings = config(
        **{
            "training.random_episodes": 2,
            "training.epochs": 10,
            "task.num_envs": 3,
            "task.name": "toy-pendulum-swingup",
        }
    )
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


class Rewards:
    """A dataset of 10 rewards of mean 2 and mean square 5."""

    def reward_moments(self, names, *, balanced):
        assert (names, balanced) == (["toy-pendulum-swingup"], True)
        return 10, 2.0, 5.0


def test_reward_statistics_of_a_dataset_are_its_mean_and_mean_square():
    config = load_experiment("quickstart").model_copy(update={"data": DataConfig(path="somewhere")})
    task = resolve(config.task)
    agent = seeded_agent(config, task.spec)
    measure_rewards(agent, Rewards(), config, task)
    moments = agent.reward_normalizer.moments
    assert (moments.count.item(), moments.mean.item()) == (10, 2.0)
    assert moments.rms.item() == pytest.approx(5.0**0.5)


def test_a_run_names_its_files_by_absolute_paths(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    asked = load_experiment("mini3-a-residual", ["data={path: some/data}", "initial={checkpoint: ~/a.pt}"])
    config = pinned(asked, resolve(asked.task))
    assert config.data.path == str(tmp_path / "some" / "data")
    assert config.initial.checkpoint == str(tmp_path / "home" / "a.pt")


def test_updates_are_compiled_where_the_run_is_long_enough_and_a_compiler_works(config, monkeypatch):
    short, long = {"training.epochs": 4}, {"training.epochs": 100_000}
    monkeypatch.setattr(start, "compiler_fault", lambda: None)
    assert start.compiles(config(**short, **{"compute.compile": "update"}))
    assert start.compiles(config(**long, **{"compute.compile": "auto"}))
    assert not start.compiles(config(**short, **{"compute.compile": "auto"}))
    assert not start.compiles(config(**long))
    monkeypatch.setattr(start, "compiler_fault", lambda: "no C++ compiler works")
    assert not start.compiles(config(**long, **{"compute.compile": "auto"}))
    with pytest.raises(ConfigError, match=r"compute.compile 'update' is not possible: no C\+\+ compiler works"):
        start.compiles(config(**{"compute.compile": "update"}))


def test_a_jacobian_penalty_is_not_compiled(config, monkeypatch):
    monkeypatch.setattr(start, "compiler_fault", lambda: None)
    penalty = {"training.epochs": 100_000, "model.dynamics.jacobian_penalty": 1e-3}
    assert not start.compiles(config(**penalty, **{"compute.compile": "auto"}))
    with pytest.raises(ConfigError, match=r"jacobian_penalty differentiates within the loss"):
        start.compiles(config(**penalty, **{"compute.compile": "update"}))


def test_updates_of_changing_shape_are_not_compiled(config, monkeypatch):
    monkeypatch.setattr(start, "compiler_fault", lambda: None)
    adaptive = {"training.epochs": 100_000, "training.adaptive_horizon": {"tolerance": 0.5}}
    assert not start.compiles(config(**adaptive, **{"compute.compile": "auto"}))
    with pytest.raises(ConfigError, match=r"training.adaptive_horizon changes the shape"):
        start.compiles(config(**adaptive, **{"compute.compile": "update"}))


def test_a_run_that_goes_uncompiled_for_want_of_a_compiler_says_so(config, train, monkeypatch, tmp_path, caplog):
    monkeypatch.setattr(start, "WORTH_COMPILING", 1)
    monkeypatch.setattr(start, "compiler_fault", lambda: "no C++ compiler works")
    train(config(**{"compute.compile": "auto"}), out=tmp_path / "run")
    assert "the updates run uncompiled, slower and otherwise alike: no C++ compiler works" in caplog.text
