"""Datasets recorded in real environments: toy tasks, policies of every kind."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from flowmbpo.checkpoints.load import load
from flowmbpo.checkpoints.save import write_checkpoint
from flowmbpo.config.task import TaskConfig
from flowmbpo.data.dataset.reader import Dataset
from flowmbpo.data.dataset.verify import verify
from flowmbpo.data.dataset.writer import DatasetWriter
from flowmbpo.envs.make import make_env
from flowmbpo.errors import CheckpointError, ConfigError, DataError
from flowmbpo.runs.collect import PolicyRequest, collect, parse_policy

PAIR = TaskConfig(name=None, set="pair", tasks=("toy-two-goals", "toy-lqr"))
GOALS = TaskConfig(name="toy-two-goals")
SMALL = {"num_envs": 2}


@pytest.fixture
def checkpoint(finished):
    """A checkpoint of one task of the pair, barely trained."""
    return finished / "checkpoints" / "latest.pt"


def first_episode(dataset, task, place=0):
    block = dataset.read_episodes(task, range(place, place + 1))
    return block.obs, block.action[:-1], block.reward[:-1]


def test_every_task_gets_every_policys_episodes_and_the_record_says_so(tmp_path):
    outcome = collect(tmp_path / "data", PAIR, [parse_policy("random"), parse_policy("noise@3")], episodes=2, **SMALL)
    assert verify(tmp_path / "data") == []
    dataset = Dataset.open(tmp_path / "data")
    assert (outcome.set, outcome.episodes, outcome.fingerprint) == ("pair", 10, dataset.fingerprint)
    assert [task.episodes for task in dataset.tasks] == [5, 5]
    for task in range(2):
        table = dataset.episode_table(task)
        assert table["source"].tolist() == [0, 0, 1, 1, 1]
        rows = [row for row in outcome.recorded if row["task"] == dataset.tasks[task].name]
        assert [row["policy"] for row in rows] == [0, 1]
        assert rows[0]["return_mean"] == pytest.approx(table["return"][:2].mean(), rel=1e-6)
        assert rows[1]["return_std"] == pytest.approx(table["return"][2:].std(), rel=1e-6)
    assert [policy["kind"] for policy in dataset.source["policies"]] == ["random", "noise"]
    assert dataset.source["seed"] == 0


def test_recorded_steps_are_those_of_the_environment(tmp_path):
    """The recorded actions, taken again from the first recorded state, earn the recorded rewards."""
    collect(tmp_path / "data", GOALS, [parse_policy("noise")], episodes=1, **SMALL)
    dataset = Dataset.open(tmp_path / "data")
    obs, action, reward = first_episode(dataset, 0)
    drawn = np.random.SeedSequence([0xDA7A, 0, 0, 0]).generate_state(2, np.uint64)
    env = make_env(GOALS, 1, 0)
    seen = [env.reset(int(drawn[0] >> np.uint64(1)))[0]]
    earned = []
    for taken in action:
        step = env.step(torch.from_numpy(taken)[None])
        seen.append(step.final_obs[0])
        earned.append(float(step.reward[0]))
    np.testing.assert_array_equal(torch.stack(seen).numpy(), obs)
    np.testing.assert_array_equal(np.array(earned, np.float32), reward)


def test_equal_calls_give_equal_datasets_and_another_seed_another(tmp_path):
    found = [
        collect(tmp_path / str(place), GOALS, [parse_policy("noise")], episodes=2, **simulation).fingerprint
        for place, simulation in enumerate((SMALL, SMALL, SMALL | {"seed": 1}))
    ]
    assert found[0] == found[1] != found[2]


def test_a_checkpoint_of_one_task_supplies_that_task_alone(tmp_path, checkpoint):
    policies = [parse_policy("random"), parse_policy(str(checkpoint))]
    outcome = collect(tmp_path / "data", PAIR, policies, episodes=2, **SMALL)
    assert [(row["task"], row["policy"]) for row in outcome.recorded] == [
        ("toy-two-goals", 0),
        ("toy-two-goals", 1),
        ("toy-lqr", 0),
    ]
    record = outcome.policies[1]
    assert record["tasks"] == ["toy-two-goals"]
    assert len(record["sha256"]) == 64


def test_a_checkpoint_acts_as_it_does_by_itself(tmp_path, checkpoint):
    """Padded to the set's widths and under another id, it takes the actions of the plain agent."""
    from flowmbpo.checkpoints.load import load
    from flowmbpo.envs.resolve import resolve
    from flowmbpo.presets.load import experiment_from_dict
    from flowmbpo.runs.evaluate import load_agent

    swapped = TaskConfig(name=None, set="swapped", tasks=tuple(reversed(PAIR.tasks)))
    collect(tmp_path / "data", swapped, [parse_policy(f"{checkpoint}")], episodes=1, **SMALL)
    dataset = Dataset.open(tmp_path / "data")
    assert dataset.tasks[1].name == "toy-two-goals"
    obs, action, _ = first_episode(dataset, 1)
    loaded = load(checkpoint)
    config = experiment_from_dict(loaded.payload["config"], "")
    agent = load_agent(loaded, config, resolve(config.task).spec)
    expected = agent.act(torch.from_numpy(obs[:-1]), torch.zeros(len(obs) - 1, dtype=torch.int64))
    # One observation at a time and all at once round differently in the last bits.
    np.testing.assert_allclose(action, expected.numpy(), atol=1e-5)


@pytest.mark.parametrize("disturbance", [{"noise": 0.3}, {"sample": True}])
def test_noise_and_samples_change_a_checkpoints_actions_reproducibly(tmp_path, checkpoint, disturbance):
    def run(name, disturbance):
        folder = tmp_path / name
        request = [PolicyRequest("checkpoint", checkpoint)]
        collect(folder, GOALS, request, episodes=1, **SMALL, **disturbance)
        return first_episode(Dataset.open(folder), 0)[1]

    plain, once, again = run("plain", {}), run("once", disturbance), run("again", disturbance)
    np.testing.assert_array_equal(once, again)
    assert np.abs(once - plain).max() > 0.01
    assert np.abs(once).max() <= 1.0


def test_what_a_checkpoint_cannot_supply_is_refused(tmp_path, checkpoint):
    with pytest.raises(ConfigError, match="it would supply nothing"):
        collect(*(tmp_path / "data", TaskConfig(name="toy-lqr"), [parse_policy(str(checkpoint))]), episodes=1)
    with pytest.raises(ConfigError, match="was trained on toy-two-goals; name one of them"):
        collect(tmp_path / "data", PAIR, [parse_policy(f"{checkpoint}:toy-lqr")], episodes=1)
    assert not (tmp_path / "data").exists()


def test_a_policy_that_nobody_trained_records_nothing(tmp_path, checkpoint):
    """A published world model brings no policy along: its actor is what a new run would begin with."""
    payload = dict(load(checkpoint).payload)
    imported = {"format": "tdmpc2", "untrained": ["actor", "critic"]}
    write_checkpoint(tmp_path / "imported.pt", {**payload, "imported": imported})
    with pytest.raises(CheckpointError, match="its policy was never trained"):
        collect(tmp_path / "data", GOALS, [parse_policy(str(tmp_path / "imported.pt"))], episodes=1)
    assert not (tmp_path / "data").exists()


class _Killed(BaseException):
    pass


def by_two_policies(folder, seed=0):
    return collect(folder, PAIR, [parse_policy("random"), parse_policy("noise")], episodes=2, seed=seed, **SMALL)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """What comes of it without an interruption."""
    return by_two_policies(tmp_path_factory.mktemp("whole") / "data")


@pytest.mark.parametrize("kill_at", [0, 3, 5])
def test_an_interrupted_collection_goes_on_to_the_same_dataset(tmp_path, monkeypatch, whole, kill_at):
    def call(name, seed=0):
        return by_two_policies(tmp_path / name, seed)

    real, added = DatasetWriter.add, []

    def killing(self, *arguments, **options):
        if len(added) == kill_at:
            raise _Killed
        added.append(None)
        real(self, *arguments, **options)

    with monkeypatch.context() as patched:
        patched.setattr(DatasetWriter, "add", killing)
        with pytest.raises(_Killed):
            call("data")
    with pytest.raises(DataError, match="unfinished"):
        Dataset.open(tmp_path / "data")
    with pytest.raises(DataError, match=r"another command began \(seed differ\)"):
        call("data", seed=1)
    one = PAIR.model_copy(update={"only": PAIR.tasks[1]})
    with pytest.raises(DataError, match=r"another command began \(.*tasks differ\)"):
        collect(tmp_path / "data", one, [parse_policy("random"), parse_policy("noise")], episodes=2, **SMALL)
    assert call("data").fingerprint == whole.fingerprint
    with pytest.raises(DataError, match="holds a finished dataset"):
        call("data")


@pytest.mark.parametrize(
    "text, expected",
    [
        ("random", PolicyRequest("random")),
        ("noise@7", PolicyRequest("noise", episodes=7)),
        ("runs/a.pt", PolicyRequest("checkpoint", Path("runs/a.pt"))),
        ("runs/a.pt:walker-stand@5", PolicyRequest("checkpoint", Path("runs/a.pt"), "walker-stand", 5)),
        ("user@host/a.pt", PolicyRequest("checkpoint", Path("user@host/a.pt"))),
    ],
)
def test_policies_are_named_in_one_word(text, expected):
    assert parse_policy(text) == expected


@pytest.mark.parametrize("name", ["run@3", "run@0", "run:walker-stand@3", "run~0.5@3", "run~0.5", "noise@7"])
def test_a_path_that_exists_as_written_is_that_path(name):
    Path(name).mkdir()
    assert parse_policy(name) == PolicyRequest("checkpoint", Path(name))
    assert parse_policy(f"{name}@5") == PolicyRequest("checkpoint", Path(name), episodes=5)
    assert parse_policy(f"{name}:hopper-hop@5") == PolicyRequest("checkpoint", Path(name), "hopper-hop", 5)


@pytest.mark.parametrize("text", ["~nobody-of-this-name/run", f"{'long' * 100}", "run@\u00b2"])
def test_paths_that_cannot_be_are_left_to_the_loader(text):
    assert parse_policy(text) == PolicyRequest("checkpoint", Path(text))


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("random@3", "random"),
        ("noise", "noise"),
        ("run/latest.pt:walker-stand~0.5@3", "run/latest.pt:walker-stand~0.5"),
        ("run/latest.pt~0", "run/latest.pt"),
        ("run", "run~0.2"),
    ],
)
def test_a_policy_is_named_as_it_was_asked_for_with_its_noise(text, name):
    assert parse_policy(text).name(0.2) == name


def test_a_mistyped_policy_is_told_the_nearest(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"neither 'random', 'noise' nor a checkpoint\. Did you mean 'random'"):
        collect(tmp_path / "data", GOALS, [parse_policy("rndom")], episodes=1)
    assert not (tmp_path / "data").exists()
    with pytest.raises(CheckpointError, match="does not exist"):
        collect(tmp_path / "data", GOALS, [parse_policy("run/latest.pt")], episodes=1)


def test_a_policy_of_no_episodes_is_refused():
    with pytest.raises(ConfigError, match="0 episodes"):
        parse_policy("random@0")


def test_a_checkpoint_may_have_noise_of_its_own():
    plain, own = parse_policy("run/latest.pt@3"), parse_policy("run/latest.pt:walker-stand~0.5@3")
    assert (plain.noise, plain.episodes) == (None, 3)
    assert (own.noise, own.episodes, own.task, own.checkpoint) == (0.5, 3, "walker-stand", Path("run/latest.pt"))
    with pytest.raises(ConfigError, match=r"'loud' is no standard deviation.*CKPT~0\.3@20"):
        parse_policy("run/latest.pt~loud")
