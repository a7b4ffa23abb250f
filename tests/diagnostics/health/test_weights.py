"""Numbers that are none are counted, named, and refused where they forbid every figure."""

import math

import pytest
import torch

from flowmbpo.diagnostics.health.verdict import measure_health
from flowmbpo.diagnostics.health.weights import check_weights, nonfinite_weights, require_finite
from flowmbpo.diagnostics.interface import Effort
from flowmbpo.diagnostics.subject import Origin
from flowmbpo.errors import CheckpointError


def test_sound_weights_are_let_through(make_subject):
    subject = make_subject()
    require_finite(subject)
    assert check_weights(subject, Effort()).findings == ()


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


def test_broken_moments_and_replay_are_found_beside_sound_weights(load_small):
    subject = load_small()
    subject.optimisers["actor"]["state"][0]["exp_avg"].view(-1)[0] = math.nan
    subject.replay.reward[3, 1] = math.inf
    check = check_weights(subject, Effort())
    assert check.figures["finite"] is True
    assert [finding.name for finding in check.findings] == ["nan-weights", "nan-replay"]
    assert check.figures["nonfinite_moments"] == {"optimiser actor.0.exp_avg": 1}


def test_updates_that_were_left_out_are_a_note(make_subject):
    subject = make_subject()
    subject.origin = Origin(nonfinite=3)
    (finding,) = check_weights(subject, Effort()).findings
    assert (finding.name, finding.severity) == ("nonfinite-updates", "note")
    assert "3 updates" in finding.message
