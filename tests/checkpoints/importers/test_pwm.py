"""PWM's own files: every part computes here what its tensors mean, and its running scales go on."""

from __future__ import annotations

import math

import parity
import published
import published_pwm
import pytest
import torch
from published_pwm import RunningMeanStd, differences, pwm_file
from slowness import slow

from flowmbpo.checkpoints.importers.conversion import import_checkpoint
from flowmbpo.errors import CheckpointError

TOLERANCE = 1e-5  # float32 against double precision; a wrong column is of order 1


@pytest.fixture
def imported(tmp_path):
    """Save a file as PWM does, import it, and give its agent, payload and outcome."""

    def run(content, **options):
        published_pwm.save(content, tmp_path / "pwm.pt")
        outcome = import_checkpoint(tmp_path / "pwm.pt", out=tmp_path / "imported.pt", **options)
        return *parity.opened(tmp_path / "imported.pt"), outcome

    return run


@pytest.mark.parametrize("task_set", ["mt30", "mt80"])
@pytest.mark.parametrize("size", ["1M", slow("5M"), slow("19M"), slow("48M"), slow("317M")])
def test_multi_task_files_compute_what_they_mean(imported, size, task_set):
    w = published.widths(size, task_set)
    content = pwm_file(w)
    agent, payload, outcome = imported(content)
    assert (outcome["format"], outcome["size"], outcome["task"], outcome["untrained"]) == ("pwm", size, task_set, [])
    assert outcome["dropped"] == ["actor_opt", "critic_opt", "world_model_opt"]
    assert "planner" not in payload
    found = differences(agent, content, w)
    assert max(found.values()) < TOLERANCE, found


def test_single_task_file_has_a_scalar_reward(imported):
    w = published.single("1M", 37, 8)  # PWM's Ant
    content = pwm_file(w, bins=1)
    agent, payload, _ = imported(content, task="dflex-ant")
    assert payload["config"]["model"]["reward"]["kind"] == "scalar"
    assert payload["config"]["training"]["gamma"] == 0.99
    found = differences(agent, content, w)
    assert max(found.values()) < TOLERANCE, found
    assert torch.equal(agent.actor.logstd.data, content["actor"]["logstd"])


def test_normalised_observations_are_folded_into_the_encoder(imported):
    """Statistics far from 0 and 1: some features shifted by 3, scaled by 0.1 to 10."""
    w = published.single("1M", 37, 8)
    mean, var = torch.linspace(-3.0, 3.0, 37), torch.logspace(-2.0, 2.0, 37)
    content = pwm_file(w, bins=1, obs_rms=RunningMeanStd(mean, var, 1e-4 + 5000))
    agent, _, outcome = imported(content, task="dflex-ant")
    assert any("folded" in note and "clip" in note for note in outcome["notes"])

    def normalise(obs):
        return (obs - mean.double()) / (var.double() + 1e-5).sqrt()

    # Observations in units of 0.1 std weigh 10 times: their float32 rounding does too.
    found = differences(agent, content, w, normalise=normalise)
    assert max(found.values()) < 10 * TOLERANCE, found


def test_statistics_that_saw_nothing_change_nothing(imported):
    fresh = {key: RunningMeanStd(torch.zeros(n), torch.ones(n), 1e-4) for key, n in (("obs_rms", 37), ("rew_rms", 1))}
    w = published.single("1M", 37, 8)
    agent, _, outcome = imported(pwm_file(w, bins=1, **fresh), task="dflex-ant")
    assert agent.reward_normalizer.moments.count == 0.0
    assert not any("folded" in note for note in outcome["notes"])


def test_reward_statistics_go_on_as_running_moments(imported):
    """mean 3, var 4 over 99 rewards: (7 - 3) / sqrt(4 + 1e-5), then one more reward of 103."""
    w = published.single("1M", 37, 8)
    agent, payload, _ = imported(
        pwm_file(w, bins=1, rew_rms=RunningMeanStd(torch.tensor([3.0]), torch.tensor([4.0]), 99.0)), task="dflex-ant"
    )
    assert payload["config"]["training"]["reward_normalization"] == "standardize"
    normalizer = agent.reward_normalizer
    assert float(normalizer(torch.tensor(7.0))) == pytest.approx(4.0 / 4.00001**0.5, abs=1e-6)
    normalizer.update(torch.tensor([103.0]))
    assert float(normalizer.moments.mean) == pytest.approx(4.0, abs=1e-6)  # (99 * 3 + 103) / 100


def test_return_statistics_become_the_return_scale(imported):
    statistics = RunningMeanStd(torch.tensor([-20.0]), torch.tensor([9.0]), 1000.0)
    agent, _, _ = imported(pwm_file(published.single("1M", 37, 8), bins=1, ret_rms=statistics), task="dflex-ant")
    assert float(agent.return_scale.std) == pytest.approx(9.00001**0.5, abs=1e-6)


def test_another_actor_is_dropped_and_named(imported):
    content = pwm_file(published.single("1M", 37, 8), bins=1)
    content["actor"] = {"actor.0.weight": torch.zeros(8, 128), "actor.0.bias": torch.zeros(8)}
    _, payload, outcome = imported(content, task="dflex-ant")
    assert outcome["untrained"] == payload["imported"]["untrained"] == ["actor"]
    assert "actor (not PWM's Gaussian)" in outcome["dropped"]


def numbers(value, width=1):
    return torch.full((width,), float(value))


@pytest.mark.parametrize(
    ("key", "statistics", "message"),
    [
        ("obs_rms", RunningMeanStd(numbers(math.nan, 37), numbers(1, 37), 9.0), r"obs_rms\.mean: .*\(nan\).*diverged"),
        ("obs_rms", RunningMeanStd(numbers(0, 36), numbers(1, 36), 9.0), r"obs_rms\.mean: has 36 numbers, 37 are"),
        ("obs_rms", RunningMeanStd(numbers(0, 0), numbers(1, 0), 9.0), r"obs_rms\.mean: has 0 numbers, 37 are"),
        ("rew_rms", RunningMeanStd(numbers(0, 2), numbers(1, 2), 9.0), r"rew_rms\.mean: has 2 numbers, 1 are"),
        (
            "rew_rms",
            RunningMeanStd(numbers(0), numbers(-2), 9.0),
            r"rew_rms\.var: holds -2, where a finite 0.*fetch it",
        ),
        ("rew_rms", RunningMeanStd(numbers(0), numbers(math.inf), 9.0), r"rew_rms\.var: .*not finite \(inf\)"),
        ("ret_rms", RunningMeanStd(numbers(0), numbers(1), math.nan), r"ret_rms\.count: holds nan"),
        ("ret_rms", RunningMeanStd(numbers(0), numbers(1), -1.0), r"ret_rms\.count: holds -1"),
        ("ret_rms", RunningMeanStd(numbers(0), numbers(1), math.inf), r"ret_rms\.count: holds inf"),
        ("ret_rms", RunningMeanStd(numbers(0).to("meta"), numbers(1), 9.0), r"ret_rms\.mean: is a tensor without"),
        ("ret_rms", RunningMeanStd(numbers(0).to_sparse(), numbers(1), 9.0), r"ret_rms\.mean: is a tensor of .*sparse"),
        ("ret_rms", RunningMeanStd(numbers(0).int(), numbers(1), 9.0), r"ret_rms\.mean: is a tensor of torch\.int32"),
    ],
)
def test_statistics_that_nothing_can_be_computed_with_are_refused(imported, tmp_path, key, statistics, message):
    content = pwm_file(published.single("1M", 37, 8), bins=1, **{key: statistics})
    with pytest.raises(CheckpointError, match=rf"pwm\.pt: {message}"):
        imported(content, task="dflex-ant")
    assert not (tmp_path / "imported.pt").exists()


def test_statistics_without_a_state_are_refused(imported):
    bare = RunningMeanStd.__new__(RunningMeanStd)  # an empty state: pickle writes none at all
    content = pwm_file(published.single("1M", 37, 8), bins=1, rew_rms=bare)
    with pytest.raises(CheckpointError, match=r"rew_rms: holds nothing, where count, mean, shape and var are needed"):
        imported(content, task="dflex-ant")


def test_a_critic_without_an_ensemble_axis_is_refused(imported):
    content = pwm_file(published.single("1M", 37, 8), bins=1)
    content["critic"] = {name: tensor[0] for name, tensor in content["critic"].items()}
    with pytest.raises(
        CheckpointError, match=r"critic layer 0\.weight: is \(400, 128\), \[members, out, in\] is needed"
    ):
        imported(content, task="dflex-ant")


@pytest.mark.parametrize("part", ["world_model", "actor", "critic"])
def test_keys_that_are_no_names_are_refused(imported, part):
    content = pwm_file(published.single("1M", 37, 8), bins=1)
    content[part][7] = torch.zeros(2)
    with pytest.raises(CheckpointError, match=rf"{part}: has the key 7 \(int\), where names"):
        imported(content, task="dflex-ant")


@pytest.mark.parametrize(
    ("statistics", "message"),
    [
        (
            RunningMeanStd(torch.zeros(1), torch.ones(1), 5.0, device="cuda:0"),
            r"rew_rms: holds shape, .*device, where count, mean",
        ),
        (RunningMeanStd(torch.zeros(1), torch.ones(2), 5.0), r"rew_rms\.var: has 2 numbers, 1 are needed"),
    ],
)
def test_statistics_of_another_form_are_refused(imported, statistics, message):
    with pytest.raises(CheckpointError, match=message):
        imported(pwm_file(published.single("1M", 37, 8), bins=1, rew_rms=statistics), task="dflex-ant")
