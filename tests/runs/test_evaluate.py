"""Evaluating a checkpoint: figures, files, pictures, and what cannot be evaluated."""

import json
import shutil

import pytest
import torch

from flowmbpo.checkpoints.load import load
from flowmbpo.checkpoints.save import CheckpointStore
from flowmbpo.envs.make import make_env
from flowmbpo.errors import CheckpointError, ConfigError, RunDirectoryError
from flowmbpo.evaluation.results import evaluate as evaluate_policy
from flowmbpo.runs.evaluate import SEED_BASE, evaluate_checkpoint, load_agent

FIELDS = {
    "checkpoint",
    "checkpoint_sha256",
    "task",
    "episodes",
    "return_mean",
    "return_std",
    "returns",
    "success",
    "length_mean",
}


@pytest.fixture
def run(finished):
    """The finished run itself: evaluating changes nothing in it."""
    return finished


def test_outcome_has_the_contracts_fields(run):
    document = evaluate_checkpoint(run, episodes=3, device="cpu").to_dict()
    assert document.keys() >= FIELDS
    assert json.loads(json.dumps(document)) == document
    assert document["checkpoint"] == str(run / "checkpoints" / "latest.pt")
    assert document["checkpoint_sha256"] == load(run / "checkpoints" / "latest.pt").sha256
    assert (document["task"], document["episodes"]) == ("toy-pendulum-swingup", 3)
    assert (document["verified"], document["epoch"]) == (True, 4)
    assert len(document["returns"]) == 3
    assert document["return_mean"] == pytest.approx(sum(document["returns"]) / 3)
    assert document["success"] is None
    assert document["length_mean"] == 100


def test_episodes_default_to_the_configs_and_the_seed_decides(run):
    first, again, other = (evaluate_checkpoint(run, seed=seed) for seed in (5, 5, 6))
    assert first.evaluation.episodes == 2
    assert first.evaluation == again.evaluation
    assert first.evaluation.returns != other.evaluation.returns


def test_returns_are_those_of_the_trained_policy_in_the_real_environment(run, config):
    from flowmbpo.envs.make import make_env
    from flowmbpo.envs.resolve import resolve
    from flowmbpo.models.agent import seeded_agent

    agent = seeded_agent(config(), resolve(config().task).spec)
    agent.load_state_dict(load(run / "checkpoints" / "latest.pt").payload["agent"])
    env = make_env(config().task, num_envs=2)
    obs, total = env.reset(SEED_BASE + 5), torch.zeros(2, dtype=torch.float64)
    for _ in range(100):
        step = env.step(agent.act(obs, env.task_ids))
        obs = step.obs
        total += step.reward
    assert evaluate_checkpoint(run, episodes=2, seed=5).evaluation.returns == pytest.approx(total.tolist())


def test_results_are_written_where_the_run_is_found_by_name(run, tmp_path):
    outcome = evaluate_checkpoint(run, seed=5)
    folder = tmp_path / "results" / "test" / "toy-pendulum-swingup" / "tiny" / "seed0"
    assert (tmp_path / outcome.results).parent == folder
    stored = json.loads((tmp_path / outcome.results).read_text())
    assert stored["returns"] == list(outcome.evaluation.returns)
    assert stored["checkpoint_sha256"] == outcome.checkpoint_sha256
    assert sorted(path.suffix for path in folder.iterdir()) == [".csv", ".json", ".md"]
    assert outcome.checkpoint_sha256 in (folder / "README.md").read_text()


def test_evaluating_leaves_the_global_generator_alone(run):
    before = torch.get_rng_state()
    evaluate_checkpoint(run)
    assert torch.equal(before, torch.get_rng_state())


def test_lone_file_is_evaluated_without_its_run_and_said_to_be_unverified(run, tmp_path):
    lone = shutil.copy(run / "checkpoints" / "best.pt", tmp_path / "agent.pt")
    outcome = evaluate_checkpoint(tmp_path / lone, seed=5)
    assert outcome.verified is False
    assert outcome.checkpoint_sha256 == load(run / "checkpoints" / "best.pt").sha256
    assert outcome.evaluation == evaluate_checkpoint(run / "checkpoints" / "best.pt", seed=5).evaluation


def test_video_and_curve_are_drawn(run, tmp_path):
    outcome = evaluate_checkpoint(run, video=tmp_path / "film.mp4", plot=tmp_path / "curve.png")
    assert (outcome.video, outcome.plot) == (str(tmp_path / "film.mp4"), str(tmp_path / "curve.png"))
    assert (tmp_path / "film.mp4").read_bytes()[4:8] == b"ftyp"
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")


def test_curve_of_a_lone_file_is_refused_before_anything_is_run(run, tmp_path):
    lone = shutil.copy(run / "checkpoints" / "latest.pt", tmp_path / "agent.pt")
    with pytest.raises(RunDirectoryError, match=r"--plot.*agent\.pt lies in no run directory"):
        evaluate_checkpoint(tmp_path / lone, plot=tmp_path / "curve.png")
    assert not (tmp_path / "results").exists()


def test_task_of_other_dimensions_is_refused_with_both(run, tmp_path):
    with pytest.raises(ConfigError, match=r"5 observations and 1 actions.*toy-pendulum-swingup with 3 and 1"):
        evaluate_checkpoint(run, task="toy-cartpole-swingup")
    assert not (tmp_path / "results").exists()


def test_task_of_the_same_dimensions_is_evaluated_under_its_own_name(run):
    outcome = evaluate_checkpoint(run, task="pendulum-swingup", episodes=1)
    assert outcome.task == "pendulum-swingup"
    assert "pendulum-swingup/tiny" in outcome.results
    assert outcome.evaluation.lengths == (500,)


def test_missing_gpu_is_said(run, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match=r"device 'cuda'.*'cpu' or 'auto'"):
        evaluate_checkpoint(run, device="cuda")


def test_weights_that_do_not_fit_their_own_config_are_refused(run, tmp_path):
    payload = dict(load(run / "checkpoints" / "latest.pt").payload)
    agent = {**payload["agent"], "actor.logstd": torch.zeros(7)}
    payload = {key: value for key, value in payload.items() if key not in ("format", "version", "replay")}
    path = CheckpointStore(tmp_path / "altered").save("latest", {**payload, "agent": agent})
    with pytest.raises(CheckpointError, match=r"another architecture.*actor\.logstd is \(7,\), needed \(1,\)"):
        evaluate_checkpoint(path)


def test_stochastic_evaluation_of_the_config_is_that_of_eval_too(train, config, tmp_path):
    train(config(**{"evaluation.deterministic": False, "training.epochs": 1}), out=tmp_path / "noisy")
    first, second = (evaluate_checkpoint(tmp_path / "noisy", seed=5).evaluation for _ in range(2))
    assert first == second
    env = make_env(config().task, num_envs=2)
    agent = load_agent(load(tmp_path / "noisy" / "checkpoints" / "latest.pt"), config(), env.spec)
    plain = evaluate_policy(agent.act, env, 2, 5)
    assert first.returns != plain.returns
