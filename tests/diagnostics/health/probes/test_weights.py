"""NaN and infinite numbers are counted, named, and refused; what an optimiser remembers is read."""

import copy
import math

import pytest
import torch

from flowmbpo.diagnostics.health.engine import measure_health
from flowmbpo.diagnostics.health.probes.weights import (
    nonfinite_outputs,
    nonfinite_weights,
    overflowing_weights,
    read_history,
    require_finite,
)
from flowmbpo.diagnostics.interface import Effort
from flowmbpo.diagnostics.subject import Origin
from flowmbpo.errors import CheckpointError


def test_sound_weights_are_let_through(make_subject, named):
    subject = make_subject()
    require_finite(subject)
    assert named(subject, "weights") == []


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_broken_weights_are_named_and_counted(value, make_subject):
    subject = make_subject()
    with torch.no_grad():
        subject.agent.actor.start.bias[0] = value
        subject.agent.reward_normalizer.moments.total.fill_(value)
    assert nonfinite_weights(subject.agent) == {"actor.start.bias": 1, "reward_normalizer.moments.total": 1}
    with pytest.raises(CheckpointError, match=r"actor\.start\.bias \(1\).*earlier checkpoint"):
        require_finite(subject)


def test_nothing_else_is_measured_on_broken_weights(make_subject):
    subject = make_subject()
    subject.make_env = None  # an episode would be an error
    with torch.no_grad():
        subject.agent.critic.network.biases[0][0, 0, 0] = math.nan
    health = measure_health(subject, Effort())
    assert [finding.name for finding in health.findings] == ["nan-weights"]
    assert not health.healthy
    assert "nothing else could be measured" in health.verdict


def test_broken_moments_and_replay_are_found(load_small, examine):
    subject = load_small()
    subject.optimisers["actor"]["state"][0]["exp_avg"].view(-1)[0] = math.nan
    subject.replay.reward[3, 1] = math.inf
    figures, found = examine(subject, "weights")
    assert figures["finite"] is True
    assert [finding.name for finding in found] == ["nan-weights", "nan-replay"]
    assert figures["nonfinite_moments"] == {"optimiser actor.0.exp_avg": 1}


def test_updates_that_were_left_out_are_a_note(make_subject, examine):
    subject = make_subject()
    subject.origin = Origin(nonfinite=3)
    _, (finding,) = examine(subject, "weights")
    assert (finding.name, finding.severity) == ("nonfinite-updates", "note")
    assert "3 updates" in finding.message


def set_first(parameter, value):
    with torch.no_grad():
        parameter.view(-1)[0] = value


def test_sound_agents_put_out_numbers(make_subject):
    subject = make_subject()
    assert nonfinite_outputs(subject) == {}
    assert overflowing_weights(subject.agent) == {}


@pytest.mark.parametrize("value", [1e30, -3e38])
def test_a_weight_whose_square_overflows_is_named(value, make_subject):
    subject = make_subject()
    subject.make_env = None  # an episode would be an error
    set_first(subject.agent.actor.start.weight, value)
    health = measure_health(subject, Effort())
    assert {finding.name for finding in health.findings} == {"nan-weights"}
    assert "actor.start.weight (1)" in health.findings[0].message
    assert not health.healthy
    assert "nothing else could be measured" in health.verdict


def test_the_largest_weight_whose_square_is_finite_is_let_through(make_subject):
    subject = make_subject()
    set_first(subject.agent.actor.start.weight, 1.8e19)  # 3.2e38 squared; float32 ends at 3.4e38
    assert overflowing_weights(subject.agent) == {}


@pytest.mark.parametrize(
    ("name", "part"),
    [("reward head", "world_model.reward_head"), ("actor", "actor"), ("critic", "critic"), ("dynamics", "dynamics")],
)
def test_outputs_that_are_no_numbers_are_named(name, part, make_subject, examine):
    """Weights of moderate size whose products overflow from layer to layer do this; a hook does it here."""
    subject = make_subject()
    module = subject.agent.get_submodule(part if part != "dynamics" else "world_model.dynamics.velocity")

    def spoil(module, args, output):
        return torch.where(torch.arange(output.numel()).view(output.shape) == 7, math.nan, output)

    module.register_forward_hook(spoil)
    assert name in nonfinite_outputs(subject)
    figures, (finding,) = examine(subject, "weights")
    assert figures["finite"] is False
    assert finding.name == "nan-weights"
    assert finding.message.startswith("Finite weights, but NaN or infinite outputs")


def test_poisoned_observations_are_not_the_weights_fault(load_small, named):
    subject = load_small()
    subject.replay.obs[::2] = math.nan
    assert nonfinite_outputs(subject) == {}
    assert named(subject, "weights") == ["nan-replay"]


def test_a_trained_part_shows_its_training(sound):
    subject = sound
    for part in ("actor", "critic"):
        history, gradients = read_history(subject, part)
        assert history["untrained"] == 0
        assert min(gradients.values()) > 0.0


def test_what_was_never_trained_is_named(load_small):
    subject = load_small()
    subject.optimisers = copy.deepcopy(dict(subject.optimisers))
    del subject.optimisers["actor"]["state"][1]
    subject.optimisers["actor"]["state"][2]["step"] = torch.tensor(0.0)
    names = [name for name, _ in subject.agent.actor.named_parameters()]
    assert read_history(subject, "actor")[0]["untrained_tensors"] == sorted(names[1:3])
    subject.optimisers["actor"]["param_groups"][0]["params"].pop()
    assert read_history(subject, "actor")[0]["untrained"] == 3  # one of them unknown to the optimiser
    subject.agent.critic.load_state_dict(subject.initial().critic.state_dict())
    every = sorted(name for name, _ in subject.agent.critic.named_parameters())
    assert read_history(subject, "critic")[0]["untrained_tensors"] == every


def test_a_run_of_no_epochs_misses_no_training(make_subject):
    subject = make_subject()
    subject.optimisers = {}
    assert read_history(subject, "actor")[0]["untrained"] == 0
