"""Finite weights that put out what is no number are broken weights, and end the diagnosis."""

import math

import pytest
import torch

from flowmbpo.diagnostics.health.verdict import measure_health
from flowmbpo.diagnostics.health.weights import check_weights, nonfinite_outputs, overflowing_weights
from flowmbpo.diagnostics.interface import Effort


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
    assert [finding.name for finding in health.findings] == ["nan-weights"]
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
def test_outputs_that_are_no_numbers_are_named_by_their_part(name, part, make_subject):
    """Weights of moderate size whose products overflow from layer to layer do this; a hook does it here."""
    subject = make_subject()
    module = subject.agent.get_submodule(part if part != "dynamics" else "world_model.dynamics.velocity")

    def spoil(module, args, output):
        return torch.where(torch.arange(output.numel()).view(output.shape) == 7, math.nan, output)

    module.register_forward_hook(spoil)
    assert name in nonfinite_outputs(subject)
    check = check_weights(subject, Effort())
    assert check.figures["finite"] is False
    (finding,) = check.findings
    assert finding.name == "nan-weights"
    assert finding.message.startswith("Finite weights, but NaN or infinite outputs")


def test_poisoned_observations_are_not_the_weights_fault(load_small):
    subject = load_small()
    subject.replay.obs[::2] = math.nan
    assert nonfinite_outputs(subject) == {}
    assert [finding.name for finding in check_weights(subject, Effort()).findings] == ["nan-replay"]
