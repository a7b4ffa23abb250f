"""Evaluating a checkpoint, also with a planner: figures, files, pictures, and what cannot be evaluated."""

import json
import shutil
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch

from flowmbpo.checkpoints.load import Loaded, load
from flowmbpo.checkpoints.save import CheckpointStore
from flowmbpo.config.planner import MPPIConfig
from flowmbpo.envs.make import make_env
from flowmbpo.errors import CheckpointError, ConfigError, RunDirectoryError
from flowmbpo.evaluation.results import evaluate as evaluate_policy
from flowmbpo.nets.mlp import normed_mlp
from flowmbpo.runs.evaluate import SEED_BASE, check_trained, evaluate_checkpoint, load_agent, planning_config

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
    assert (document["task"], document["episodes"]) == ("toy-two-goals", 3)
    assert (document["verified"], document["epoch"]) == (True, 4)
    assert len(document["returns"]) == 3
    assert document["return_mean"] == pytest.approx(sum(document["returns"]) / 3)
    assert document["success"] is None
    assert document["length_mean"] == 25


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
    for _ in range(25):
        step = env.step(agent.act(obs, env.task_ids))
        obs = step.obs
        total += step.reward
    assert evaluate_checkpoint(run, episodes=2, seed=5).evaluation.returns == pytest.approx(total.tolist())


def test_results_are_written_where_the_run_is_found_by_name(run, tmp_path):
    outcome = evaluate_checkpoint(run, seed=5)
    folder = tmp_path / "results" / "test" / "toy-two-goals" / "tiny" / "seed0"
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
    assert (outcome.video, outcome.plot) == (tmp_path / "film.mp4", tmp_path / "curve.png")
    assert (tmp_path / "film.mp4").read_bytes()[4:8] == b"ftyp"
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")


def test_curve_of_a_lone_file_is_refused_before_anything_is_run(run, tmp_path):
    lone = shutil.copy(run / "checkpoints" / "latest.pt", tmp_path / "agent.pt")
    with pytest.raises(RunDirectoryError, match=r"--plot.*agent\.pt lies in no run directory"):
        evaluate_checkpoint(tmp_path / lone, plot=tmp_path / "curve.png")
    assert not (tmp_path / "results").exists()


def test_task_of_other_dimensions_is_refused_with_both(run, tmp_path):
    with pytest.raises(ConfigError, match=r"5 observations and 1 actions.*toy-two-goals with 2 and 2"):
        evaluate_checkpoint(run, task="toy-cartpole-swingup")
    assert not (tmp_path / "results").exists()


def test_task_of_the_same_dimensions_is_evaluated_under_its_own_name(swung):
    outcome = evaluate_checkpoint(swung, task="pendulum-swingup", episodes=1)
    assert outcome.task == "pendulum-swingup"
    assert "pendulum-swingup/tiny" in str(outcome.results)
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
    with pytest.raises(CheckpointError, match=r"another architecture.*actor\.logstd is \(7,\), needed \(2,\)"):
        evaluate_checkpoint(path)


def test_stochastic_evaluation_of_the_config_is_that_of_eval_too(train, config, tmp_path):
    train(config(**{"evaluation.deterministic": False, "training.epochs": 1}), out=tmp_path / "noisy")
    first, second = (evaluate_checkpoint(tmp_path / "noisy", seed=5).evaluation for _ in range(2))
    assert first == second
    env = make_env(config().task, num_envs=2)
    agent = load_agent(load(tmp_path / "noisy" / "checkpoints" / "latest.pt"), config(), env.spec)
    plain = evaluate_policy(agent.act, env, 2, 5)
    assert first.returns != plain.returns


SMALL = MPPIConfig(horizon=2, iterations=2, samples=16, elites=4, policy_samples=4)
TOYS = {"name": None, "set": "toys", "tasks": ["toy-lqr", "toy-two-goals", "toy-map-smooth"], "num_envs": 4}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("finished")


@pytest.fixture
def toys(folder, train, config):
    """A finished run over three tasks of different widths, shared too."""
    if not (folder / "toys").exists():
        train(config(task=TOYS, **{"model.task_dim": 4, "training.epochs": 1}), out=folder / "toys")
    return folder / "toys"


@pytest.fixture
def altered(tmp_path):
    """The latest checkpoint of a run with entries added or replaced."""

    def alter(run, **entries):
        payload = load(run / "checkpoints" / "latest.pt").payload
        kept = {key: value for key, value in payload.items() if key not in ("format", "version", "replay")}
        return CheckpointStore(tmp_path / "altered").save("latest", kept | entries)

    return alter


def imported_planner(latent, action, members=3):
    """Random prior and Q functions as an import keeps them."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        networks = [normed_mlp(latent, (8,), 2 * action, normed_output=False)]
        networks += [normed_mlp(latent + action, (8,), 11, normed_output=False) for _ in range(members)]
        states = [{k: v + 0.3 * torch.randn_like(v) for k, v in net.state_dict().items()} for net in networks]
    q = {name: torch.stack([state[name] for state in states[1:]]) for name in states[1]}
    bounds = {"log_std_min": -10.0, "log_std_max": 2.0, "bins": 11, "low": -10.0, "high": 10.0}
    return {"kind": "tdmpc2", "pi": states[0], "q": q, **bounds}


def test_planned_results_lie_beside_the_policys_and_name_their_planner(run, tmp_path):
    policy = evaluate_checkpoint(run, seed=5)
    before = (tmp_path / policy.results).read_bytes()
    planned = evaluate_checkpoint(run, seed=5, planner=SMALL)
    folder = tmp_path / "results" / "test" / "toy-two-goals" / "tiny" / "seed0"
    assert (tmp_path / policy.results).parent == folder and (tmp_path / planned.results).parent == folder / "mppi"
    assert (tmp_path / policy.results).read_bytes() == before
    assert json.loads(before)["planner"] == {"kind": "policy"} == policy.to_dict()["planner"]
    stored = json.loads((tmp_path / planned.results).read_text())["planner"]
    assert stored == planned.to_dict()["planner"]
    assert (stored["kind"], stored["values"], stored["settings"]) == ("mppi", "critic", SMALL.model_dump())
    # 2 copies x 25 steps; 16 sequences in each of 2 iterations
    assert stored["counts"] == {"plans": 50, "sequences": 1600, "nonfinite": 0, "fallbacks": 0}
    assert "| mppi on critic: horizon 2, iterations 2, samples 16," in (folder / "mppi" / "README.md").read_text()
    assert (folder / "README.md").read_text().rstrip().endswith("| policy |")
    table = (tmp_path / planned.results).with_suffix(".csv").read_text()
    assert table.count("mppi on critic: horizon 2") == 2


def test_other_settings_are_kept_apart_and_defaults_are_written_out(run, tmp_path):
    first = evaluate_checkpoint(run, episodes=1, planner=SMALL)
    other = evaluate_checkpoint(run, episodes=1, planner=SMALL.model_copy(update={"iterations": None}))
    assert first.results != other.results
    assert json.loads((tmp_path / other.results).read_text())["planner"]["settings"]["iterations"] == 6
    assert len(list((tmp_path / first.results).parent.glob("*.json"))) == 2


def test_the_seed_decides_plans_and_episodes(run):
    seeds = (5, 5, 6)
    first, again, other = (evaluate_checkpoint(run, episodes=1, seed=s, planner=SMALL).evaluation for s in seeds)
    assert first == again and first != other
    assert first.returns != evaluate_checkpoint(run, episodes=1, seed=5).evaluation.returns


def test_planning_leaves_the_global_generator_alone(run):
    before = torch.get_rng_state()
    evaluate_checkpoint(run, episodes=1, planner=SMALL)
    assert torch.equal(before, torch.get_rng_state())


def test_planner_films_too(run, tmp_path):
    evaluate_checkpoint(run, episodes=1, planner=SMALL, video=tmp_path / "film.mp4")
    assert (tmp_path / "film.mp4").read_bytes()[4:8] == b"ftyp"


def test_tasks_of_a_set_are_planned_with_their_own_widths(toys):
    outcome = evaluate_checkpoint(toys, episodes=3, planner=SMALL)
    assert set(outcome.evaluation.tasks) == set(TOYS["tasks"])
    alone = evaluate_checkpoint(toys, episodes=1, task="toy-two-goals", planner=SMALL)
    assert alone.task == "toy-two-goals" and "/toy-two-goals/tiny/seed0/mppi/" in str(alone.results)


def test_one_member_of_a_set_is_evaluated_by_default_and_another_by_name(toys, altered):
    saved = load(toys / "checkpoints" / "latest.pt").payload["config"]
    path = altered(toys, config=saved | {"task": saved["task"] | {"only": "toy-two-goals"}})
    own = evaluate_checkpoint(path, episodes=2)
    assert own.task == "toy-two-goals" and own.evaluation.episodes == 2
    assert own.evaluation.returns == evaluate_checkpoint(toys, episodes=2, task="toy-two-goals").evaluation.returns
    assert evaluate_checkpoint(path, episodes=1, task="toy-lqr").task == "toy-lqr"
    with pytest.raises(ConfigError, match=r"cheetah-run: is not one of the tasks"):
        evaluate_checkpoint(path, task="cheetah-run")


def test_imported_q_functions_and_prior_are_what_plans(run, altered):
    path = altered(run, planner=imported_planner(16, 2), imported={"untrained": ["actor", "critic"]})
    planned = evaluate_checkpoint(path, episodes=1, planner=SMALL)
    assert planned.planner["values"] == "tdmpc2"
    assert planned.evaluation.returns != evaluate_checkpoint(run, episodes=1, planner=SMALL).evaluation.returns
    with pytest.raises(CheckpointError, match=r"actor is untrained\. Plan instead \(--planner mppi\), or train one"):
        evaluate_checkpoint(path)


def test_planner_of_another_size_is_refused(run, altered, tmp_path):
    path = altered(run, planner=imported_planner(24, 2))
    with pytest.raises(CheckpointError, match=r"planner\.pi: .*0\.linear\.weight is \(8, 24\), needed \(8, 16\)"):
        evaluate_checkpoint(path, planner=SMALL)
    assert not (tmp_path / "results").exists()


def test_untrained_weights_are_refused_with_what_can_be_done(run, altered, tmp_path):
    path = altered(run, imported={"untrained": ["actor", "critic"]})
    with pytest.raises(CheckpointError, match=r"actor is untrained\. Train one in its world model: flowmbpo train"):
        evaluate_checkpoint(path)
    with pytest.raises(CheckpointError, match=r"nothing to plan with\. Import the file again with its planner"):
        evaluate_checkpoint(path, planner=SMALL)
    assert not (tmp_path / "results").exists()
    path = altered(run, imported={"untrained": []})
    assert evaluate_checkpoint(path, episodes=1).evaluation.episodes == 1


def test_a_world_model_that_was_trained_alone_neither_acts_nor_plans(run, altered, tmp_path):
    saved = load(run / "checkpoints" / "latest.pt").payload["config"]
    alone = saved | {"training": saved["training"] | {"learn": "model"}}
    path = altered(run, config=alone, initial=None)
    what = r"trained its world model alone"
    train = (
        r"Train one in its world model: flowmbpo train --from \S*altered\S* --data DIR, or name a checkpoint of a later"
    )
    with pytest.raises(CheckpointError, match=rf"{what}; its actor is untrained\. {train}"):
        evaluate_checkpoint(path)
    with pytest.raises(
        CheckpointError, match=rf"{what} and its critic is untrained, .* nothing to plan with\. {train}"
    ):
        evaluate_checkpoint(path, planner=SMALL)
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize(("action", "acts"), [("copied", True), ("reinitialised", False)])
def test_a_policy_that_was_taken_over_acts_in_a_model_trained_alone(action, acts):
    rows = [{"part": part, "action": action} for part in ("actor", "critic")]
    payload = {"config": {"training": {"learn": "model"}}, "initial": {"transfer": {"rows": rows}}}
    loaded = Loaded(Path("a.pt"), payload, "", verified=True)
    for kind in ("policy", "mppi"):
        with nullcontext() if acts else pytest.raises(CheckpointError, match="trained its world model alone"):
            check_trained(loaded, kind)


def test_symlog_rewards_are_decoded_where_q_functions_plan(config):
    two_hot = config(**{"model.reward": {"kind": "two_hot", "units": [16], "decode": "symlog"}})
    assert planning_config(two_hot, {"planner": {}}).model.reward.decode == "symexp"
    assert planning_config(two_hot, {}) == two_hot  # the critic was trained on them as they are
    assert planning_config(config(), {"planner": {}}) == config()
