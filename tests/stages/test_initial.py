"""Stages chained over real checkpoints: offline, online over a set, one task, and a policy in a frozen model."""

import json
import math

import numpy as np
import pytest
import torch

from flowmbpo.checkpoints.load import load
from flowmbpo.config.task import TaskConfig
from flowmbpo.data.dataset.format import TaskRecord
from flowmbpo.data.dataset.writer import DatasetWriter
from flowmbpo.diagnostics.health.engine import POLICY_PROBES, measure_health
from flowmbpo.diagnostics.interface import Effort
from flowmbpo.envs.make import make_env
from flowmbpo.envs.resolve import resolve
from flowmbpo.envs.tasks import task_info
from flowmbpo.errors import CheckpointError, ConfigError, DataError
from flowmbpo.presets.load import experiment_from_dict
from flowmbpo.runs.start import begin, dry_run
from flowmbpo.runs.subjects import load_subject
from flowmbpo.runs.train import train
from flowmbpo.stages.config import Request, stage_config
from flowmbpo.training.collector import Collector

TOYS = ("toy-two-goals", "toy-map-smooth")
EPISODES = 3
BASE = {
    "name": "toys",
    "phase": "tests",
    "device": "cpu",
    "task": {"name": None, "set": "toys", "tasks": list(TOYS), "num_envs": 4},
    "model": {
        "latent_dim": 16,
        "task_dim": 4,
        "encoder": {"kind": "mlp", "units": [16]},
        "dynamics": {"kind": "residual", "units": [16, 16], "geometry": "logit"},
        "reward": {"kind": "scalar", "units": [16]},
    },
    "actor": {"kind": "gaussian", "units": [16, 16]},
    "critic": {"units": [16]},
    "training": {
        "epochs": 4,
        "horizon": 3,
        "wm_batch_size": 8,
        "wm_iterations": 2,
        "actor_batch_size": 6,
        "critic_iterations": 1,
        "critic_batches": 2,
        "random_episodes": 1,
    },
    "evaluation": {"every": 0, "episodes": 2},
    "diagnostics": {"every": 0},
    "checkpoint": {"every": 2, "keep": 0},
    "compute": {"threads": 1},
}


def merged(base, changes):
    result = dict(base)
    for key, value in changes.items():
        result[key] = merged(base[key], value) if isinstance(value, dict) and isinstance(base.get(key), dict) else value
    return result


def config(**changes):
    return experiment_from_dict(merged(BASE, changes))


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """Random episodes of both toys, recorded step by step from the real environments."""
    folder = tmp_path_factory.mktemp("data") / "toys"
    infos = [task_info(name) for name in TOYS]
    records = [TaskRecord(name=info.name, obs_dim=info.obs_dim, action_dim=info.action_dim) for info in infos]
    writer = DatasetWriter.create(folder, "toys", records, {"policy": "random"})
    generator = torch.Generator().manual_seed(7)
    for task, info in enumerate(infos):
        env = make_env(TaskConfig(name=info.name, num_envs=EPISODES))
        obs, actions, rewards = [env.reset(3).clone()], [], []
        for _ in range(info.episode_length):
            actions.append(torch.rand(EPISODES, info.action_dim, generator=generator) * 2 - 1)
            step = env.step(actions[-1])
            obs.append(step.final_obs.clone())
            rewards.append(step.reward.clone())
        columns = [torch.stack(part, 1).numpy().astype(np.float32) for part in (obs, actions, rewards)]
        writer.add_many(task, *columns, None, None)
    writer.finish()
    return folder


def offline(dataset, **changes):
    own = {"data": {"path": str(dataset)}, "training": {"mode": "offline", "random_episodes": 0}}
    return config(**merged(own, changes))


@pytest.fixture(autouse=True)
def few_diagnosed_steps(monkeypatch):
    """What an offline run is diagnosed on takes seconds to lay out at its real size."""
    monkeypatch.setattr("flowmbpo.data.probe.ENV_STEPS", 40)


@pytest.fixture(scope="module")
def stage_a(dataset, tmp_path_factory):
    out = tmp_path_factory.mktemp("a") / "run"
    return out, train(offline(dataset), out=out, console=False)


@pytest.fixture(scope="module")
def model_alone(dataset, tmp_path_factory):
    """A run that learns the world model and no policy."""
    out = tmp_path_factory.mktemp("model") / "run"
    return out, train(offline(dataset, training={"learn": "model"}), out=out, console=False)


def payload(run):
    return load(run / "checkpoints" / "latest.pt").payload


def weights(run, prefix=""):
    return {name: value for name, value in payload(run)["agent"].items() if name.startswith(prefix)}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_offline_run_learns_without_an_environment_step(stage_a, dataset):
    run, outcome = stage_a
    assert (outcome.agent_steps, outcome.epochs, outcome.status) == (0, 4, "done")
    assert outcome.eval_episodes == 2 and set(outcome.per_task) == set(TOYS)
    transitions = EPISODES * sum(task_info(name).episode_length for name in TOYS)
    assert outcome.lineage[-1]["data_transitions"] == outcome.data["transitions"] == transitions
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert all(math.isfinite(row["loss/dynamics"]) for row in rows if "loss/dynamics" in row)


def test_reward_scale_comes_from_the_whole_dataset(stage_a, dataset):
    moments = payload(stage_a[0])["agent"]
    count = EPISODES * sum(task_info(name).episode_length for name in TOYS)
    assert float(moments["reward_normalizer.moments.count"]) == count
    before = {name: float(moments[f"reward_normalizer.moments.{name}"]) for name in ("total", "total_square")}
    assert before["total_square"] > 0.0 and math.isfinite(before["total"])


@pytest.mark.parametrize("learn", ["all", "model"])
def test_offline_run_resumes_bit_equally(dataset, tmp_path, learn):
    parts = tmp_path / "parts"
    short = offline(dataset, training={"learn": learn, "epochs": 2, "lr_schedule": "constant"})
    long = offline(dataset, training={"learn": learn, "lr_schedule": "constant"})
    train(short, out=parts, console=False)
    train(long, resume=parts, console=False)
    reference = tmp_path / "reference"
    train(long, out=reference, console=False)
    assert same(weights(parts), weights(reference))
    assert payload(parts)["windows"] == payload(reference)["windows"]


def test_world_model_alone_needs_no_simulator_and_reports_no_return(model_alone):
    _, outcome = model_alone
    assert outcome.status == "done" and outcome.final_return_mean is None and outcome.eval_episodes == 0


def health(run):
    subject = load_subject(run, task=None, device="cpu", seed=0, episodes=2)
    diagnosis = measure_health(subject, Effort.light(subject.config.diagnostics))
    return diagnosis


def test_what_a_run_does_not_train_is_not_called_broken(stage_a, model_alone, dataset, tmp_path):
    a, _ = stage_a
    policy = tmp_path / "policy"
    assert not POLICY_PROBES.keys() & health(model_alone[0]).checks.keys()
    source = experiment_from_dict(payload(a)["config"])
    request = Request("policy", checkpoint=a / "checkpoints" / "latest.pt", source=source, data=dataset, task=TOYS[0])
    train(stage_config(request), out=policy, console=False)
    found = health(policy)
    assert "frozen-encoder" not in found.verdict and {"actor", "critic"} <= found.checks.keys()


def test_another_dataset_is_refused_on_resume(stage_a, dataset, tmp_path):
    other = tmp_path / "other"
    info = task_info(TOYS[0])
    records = [
        TaskRecord(name=name, obs_dim=task_info(name).obs_dim, action_dim=task_info(name).action_dim) for name in TOYS
    ]
    writer = DatasetWriter.create(other, "toys", records, {})
    for task, name in enumerate(TOYS):
        info = task_info(name)
        rng = np.random.default_rng(0)
        obs = rng.normal(size=(6, info.obs_dim)).astype(np.float32)
        writer.add(task, obs, np.zeros((5, info.action_dim), np.float32), np.ones(5, np.float32), np.zeros(5, bool))
    writer.finish()
    run = tmp_path / "run"
    train(offline(dataset, training={"epochs": 2, "lr_schedule": "constant"}), out=run, console=False)
    with pytest.raises((DataError, CheckpointError), match="dataset"):
        train(offline(other, training={"lr_schedule": "constant"}), resume=run, console=False)


def test_fine_tuning_and_specialising_go_on_from_the_weights(stage_a, tmp_path):
    a, _ = stage_a
    source = experiment_from_dict(payload(a)["config"])
    b_config = stage_config(
        Request("finetune", checkpoint=a / "checkpoints" / "latest.pt", source=source, overrides=["training.epochs=2"])
    )
    b = tmp_path / "b"
    outcome = train(b_config, out=b, console=False)
    assert outcome.start is not None and set(outcome.start["per_task"]) == set(TOYS)
    began, ended = outcome.start["return_mean"], outcome.final_return_mean
    assert outcome.retained_percent == (pytest.approx(100.0 * ended / began) if began > 0.0 else None)
    record = json.loads((b / "initial.json").read_text())
    assert {row["action"] for row in record["transfer"]["rows"]} == {"loaded"}
    assert (record["optimisers"], record["replay"]) == ("reinitialised", "dropped")
    middle = experiment_from_dict(payload(b)["config"])
    assert middle.initial.sha256 == load(a / "checkpoints" / "latest.pt").sha256

    request = Request(
        "specialize",
        checkpoint=b / "checkpoints" / "latest.pt",
        source=middle,
        task=TOYS[1],
        overrides=["training.epochs=2", "evaluation.threshold=-1e6"],
    )
    c = tmp_path / "c"
    last = train(stage_config(request), out=c, console=False)
    assert [stage["phase"] for stage in last.lineage] == ["tests", "stage-b", "stage-c"]
    assert last.lineage[0]["data_transitions"] > 0 and last.lineage[1]["agent_steps"] > 0
    assert last.agent_steps_to_threshold == 0  # it began above
    assert set(last.per_task) == {TOYS[1]}


def test_what_a_run_begins_with_is_what_the_checkpoint_held(stage_a, tmp_path):
    a, _ = stage_a
    source = experiment_from_dict(payload(a)["config"])
    request = Request("finetune", checkpoint=a / "checkpoints" / "latest.pt", source=source)
    begun = stage_config(request)
    from flowmbpo.runs.start import initial_agent

    assert same(initial_agent(begun, resolve(begun.task).spec).state_dict(), weights(a))


def test_policy_alone_leaves_the_world_model_bit_equal(stage_a, dataset, tmp_path):
    a, _ = stage_a
    source = experiment_from_dict(payload(a)["config"])
    request = Request("policy", checkpoint=a / "checkpoints" / "latest.pt", source=source, data=dataset, task=TOYS[0])
    run = tmp_path / "run"
    outcome = train(stage_config(request), out=run, console=False)
    assert outcome.agent_steps == 0
    assert same(weights(run, "world_model."), weights(a, "world_model."))
    assert same(weights(run, "reward_normalizer."), weights(a, "reward_normalizer."))
    assert not same(weights(run, "actor."), weights(a, "actor."))


FLOW = "model.dynamics={kind: flow, units: [16, 16], geometry: logit, endpoint_weight: 1}"


def begun_from(run, stage, *overrides, **options):
    checkpoint = run / "checkpoints" / "latest.pt"
    source = experiment_from_dict(payload(run)["config"])
    return stage_config(Request(stage, checkpoint=checkpoint, source=source, overrides=overrides, **options))


def test_distillation_online_reads_the_dataset_where_one_is_named(stage_a, dataset, tmp_path, caplog):
    a, _ = stage_a
    asked = (FLOW, "initial.distill_updates=5", "training.epochs=1", "evaluation.at_start=false")
    train(begun_from(a, "finetune", *asked, data=dataset), out=tmp_path / "data", console=False)
    held_out, windows = 4, config().training.wm_batch_size
    assert sum(payload(tmp_path / "data")["windows"]["dealt"]) == (held_out + 5) * windows
    assert payload(tmp_path / "data")["warmstart"]["updates"] == 5
    caplog.clear()
    train(begun_from(a, "finetune", *asked, data=dataset), resume=tmp_path / "data", console=False)
    assert "is not read" not in caplog.text  # it was, before
    with pytest.raises(ConfigError, match=r"real windows.*random_episodes.*--data DIR"):
        train(begun_from(a, "finetune", *asked, "training.random_episodes=0"), out=tmp_path / "none", console=False)
    assert not (tmp_path / "none").exists()


def test_a_dataset_that_nothing_reads_leaves_no_trace(stage_a, dataset, tmp_path, caplog):
    a, _ = stage_a
    asked = ("training.epochs=1", "evaluation.at_start=false")
    outcome = train(begun_from(a, "finetune", *asked, data=dataset), out=tmp_path / "run", console=False)
    assert "is not read" in caplog.text
    assert outcome.lineage[-1]["data_transitions"] == 0 and outcome.data is None


def test_no_policy_is_learnt_in_a_frozen_model_that_never_saw_the_task(dataset, tmp_path):
    one = {"task": {"set": "one", "tasks": [TOYS[0]]}}
    train(offline(dataset, **one), out=tmp_path / "one", console=False)
    asked = begun_from(tmp_path / "one", "policy", data=dataset, task=TOYS[1])
    with pytest.raises(ConfigError, match=rf"never trained on {TOYS[1]}.*rewards of {TOYS[0]}"):
        train(asked, out=tmp_path / "run", console=False)
    assert not (tmp_path / "run").exists()


def test_a_policy_that_no_run_has_trained_is_not_taken_over(model_alone, tmp_path):
    outcome = train(begun_from(model_alone[0], "finetune", "training.epochs=1"), out=tmp_path / "b", console=False)
    rows = json.loads((tmp_path / "b" / "initial.json").read_text())["transfer"]["rows"]
    found = {row["part"]: (row["action"], row["detail"]) for row in rows if row["action"] != "dropped"}
    assert found["actor"] == found["critic"] == ("reinitialised", "never trained in the source")
    assert found["encoder"][0] == found["dynamics"][0] == "loaded"
    assert outcome.start is not None and outcome.retained_percent is None


@pytest.fixture
def uniform(monkeypatch):
    """One entry per step that was acted by uniform random actions."""
    steps, draw = [], Collector._random_action
    monkeypatch.setattr(Collector, "_random_action", lambda self, agent: steps.append(1) or draw(self, agent))
    return steps


QUICK = ("training.epochs=1", "evaluation.at_start=false", "evaluation.episodes=1")


def test_a_trained_policy_that_is_taken_over_acts_from_the_start(stage_a, tmp_path, uniform):
    a, _ = stage_a
    asked = begun_from(a, "specialize", "training.warmup_model_updates=3", *QUICK, task=TOYS[0])
    first = train(asked, out=tmp_path / "c", console=False)
    assert not uniform and first.agent_steps == 4 * 3 == dry_run(asked)["agent_steps"]
    longer = asked.model_copy(update={"training": asked.training.model_copy(update={"epochs": 2})})
    assert train(longer, resume=tmp_path / "c", console=False).agent_steps == 2 * 4 * 3
    assert not uniform


def test_an_untrained_policy_begins_with_random_episodes(model_alone, tmp_path, uniform):
    train(begun_from(model_alone[0], "specialize", *QUICK, task=TOYS[0]), out=tmp_path / "c", console=False)
    assert len(uniform) == task_info(TOYS[0]).episode_length


def test_random_episodes_that_are_asked_for_are_random(stage_a):
    a, _ = stage_a
    asked = begun_from(a, "specialize", "training.random_episodes=2", task=TOYS[0])
    start = begin(asked, resolve(asked.task), None)
    assert (start.config.own_training.random_episodes, start.policy_starts) == (2, False)


def test_distillation_without_a_dataset_takes_windows_of_the_policy(stage_a, tmp_path, uniform):
    a, _ = stage_a
    asked = begun_from(a, "specialize", FLOW, "initial.distill_updates=5", *QUICK, task=TOYS[0])
    outcome = train(asked, out=tmp_path / "c", console=False)
    assert not uniform and outcome.agent_steps == 4 * (task_info(TOYS[0]).episode_length + 3)
    assert payload(tmp_path / "c")["warmstart"]["updates"] == 5


def test_dynamics_of_another_kind_are_distilled_before_the_policy_learns(stage_a, dataset, tmp_path):
    a, _ = stage_a
    source = experiment_from_dict(payload(a)["config"])
    overrides = ["model.dynamics={kind: flow, units: [16, 16], geometry: logit, endpoint_weight: 1}"]
    request = Request(
        "policy",
        checkpoint=a / "checkpoints" / "latest.pt",
        source=source,
        data=dataset,
        task=TOYS[0],
        overrides=[*overrides, "initial.distill_updates=20"],
    )
    run = tmp_path / "run"
    train(stage_config(request), out=run, console=False)
    warm = payload(run)["warmstart"]
    assert warm["updates"] == 20 and sum(warm["after"]) < sum(warm["before"])
    assert same(weights(run, "world_model.encoder."), weights(a, "world_model.encoder."))

    refused = stage_config(
        Request(
            "policy",
            checkpoint=a / "checkpoints" / "latest.pt",
            source=source,
            data=dataset,
            task=TOYS[0],
            overrides=[*overrides, "initial.distill_updates=0"],
        )
    )
    with pytest.raises(ConfigError, match=r"keeps the world model as it is.*dynamics.*distill_updates"):
        train(refused, out=tmp_path / "refused", console=False)
    assert not (tmp_path / "refused").exists()


def test_pretraining_comes_before_the_first_environment_step_and_resumes_within(dataset, tmp_path, monkeypatch):
    single = {"task": {"name": TOYS[0], "set": None, "tasks": None}, "model": {"task_dim": 0}}
    asked = config(**single, data={"path": str(dataset)}, training={"pretrain_steps": 10, "epochs": 1})
    monkeypatch.setattr("flowmbpo.training.learner.PRETRAINING_SLICE", 4)
    run = tmp_path / "run"
    outcome = train(asked, out=run, console=False)
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [row["pretrain/updates"] for row in rows if "pretrain/updates" in row] == [4, 8, 10]
    assert all(row["agent_steps"] == 0 for row in rows if "pretrain/updates" in row)
    assert outcome.lineage[-1]["data_transitions"] == EPISODES * task_info(TOYS[0]).episode_length


def test_what_cannot_run_is_refused_before_anything_is_written(tmp_path, dataset):
    out = tmp_path / "run"
    with pytest.raises(ConfigError, match=r"mode 'offline'.*--data DIR"):
        train(config(training={"mode": "offline"}), out=out, console=False)
    with pytest.raises(ConfigError, match=r"pretrain_steps 5.*--data DIR"):
        train(config(training={"pretrain_steps": 5}), out=out, console=False)
    with pytest.raises(ConfigError, match=r"learn 'policy'.*--from CKPT"):
        train(offline(dataset, training={"learn": "policy"}), out=out, console=False)
    with pytest.raises(DataError, match="toy-slip"):
        lacking = [*TOYS, "toy-slip"]
        train(offline(dataset, task={"set": "more", "tasks": lacking}), out=out, console=False)
    assert not out.exists()


def test_a_checkpoint_that_went_on_is_not_taken_for_the_one_a_run_began_with(stage_a, tmp_path):
    a, _ = stage_a
    source = experiment_from_dict(payload(a)["config"])
    begun = stage_config(Request("finetune", checkpoint=a / "checkpoints" / "latest.pt", source=source))
    altered = begun.model_copy(update={"initial": begun.initial.model_copy(update={"sha256": "0" * 64})})
    with pytest.raises(CheckpointError, match="is not the file that the run began with"):
        train(altered, out=tmp_path / "run", console=False)


def test_a_dry_run_says_what_is_missing_and_refuses_a_dataset_without_the_tasks(dataset):
    alone = config(training={"mode": "offline", "learn": "policy"})
    assert dry_run(alone)["needs"] == ["--data DIR", "--from CKPT"]
    assert dry_run(offline(dataset))["needs"] == []
    with pytest.raises(DataError, match=r"holds no episodes of toy-slip\. It holds: toy-two-goals"):
        dry_run(offline(dataset, task={"set": "more", "tasks": [*TOYS, "toy-slip"]}))
