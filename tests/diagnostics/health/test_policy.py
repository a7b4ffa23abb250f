"""Saturated policies, and those that only look like it."""

import math

import pytest
import torch

from flowmbpo.diagnostics.health.policy import Saturation, measure_saturation, saturation_findings


def saturation(share, deep, slope):
    as_row = [torch.tensor([float(x) for x in row]) for row in (share, deep, slope, share)]
    return Saturation(*as_row)


@pytest.mark.parametrize(
    ("share", "deep", "slope", "found"),
    [
        ([0.1, 0.2], [0.0, 0.0], [0.6, 0.4], []),
        ([0.92, 0.5], [0.0, 0.0], [0.03, 0.3], []),  # one dimension bang-bang, the other not
        ([0.95, 0.9], [0.0, 0.0], [0.03, 0.03], [("policy-nearly-saturated", "note")]),
        ([1.0, 1.0], [0.9, 0.9], [0.0, 0.0], [("saturated-policy", "broken")]),
        ([0.5, 0.5], [0.3, 0.3], [0.2, 0.2], [("saturated-policy", "broken")]),
        ([1.0, 0.0], [0.0, 0.0], [5e-4, 0.9], [("saturated-policy", "broken")]),
    ],
)
def test_saturation_is_judged_by_how_deep_it_is(share, deep, slope, found):
    findings = saturation_findings(saturation(share, deep, slope))
    assert [(finding.name, finding.severity) for finding in findings] == found


def test_one_lost_dimension_of_many_is_named():
    deep = [0.0] * 12
    deep[7] = 1.0
    (finding,) = saturation_findings(saturation([0.0] * 12, deep, [0.5] * 12))
    assert finding.name == "saturated-policy"
    assert "dimensions 7 " in finding.message


def test_saturation_of_a_constant_policy_is_measured_exactly(make_subject):
    subject = make_subject("actor.kind=gaussian", "actor.init_logstd=-1.427")
    with torch.no_grad():
        subject.agent.actor.mean[-1].weight.zero_()
        subject.agent.actor.mean[-1].bias.fill_(-3.0)
        subject.agent.actor.logstd.fill_(-20.0)  # as good as no noise: a = tanh(-3)
    found = measure_saturation(subject, 32)
    assert found.share.tolist() == [1.0] and found.stuck.tolist() == [1.0] and found.deep.tolist() == [0.0]
    # float32 rounds a = tanh(-3) to 6e-8, and 1 - a^2 = 1e-2 with it
    assert found.slope.item() == pytest.approx(1.0 - math.tanh(3.0) ** 2, rel=1e-4)
