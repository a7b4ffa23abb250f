"""Saturated policies, those that only look like it, and episodes that end early."""

import math

import pytest
import torch

from flowmbpo.diagnostics.health.probes.policy import measure_saturation
from flowmbpo.diagnostics.subject import Origin
from flowmbpo.evaluation.episodes import Episodes


def figures_of(action, make_subject, monkeypatch):
    """Saturation of a policy that gives these actions, a row per state."""
    rows, width = action.shape
    subject = make_subject(f"task.name={'toy-pendulum-swingup' if width == 1 else 'toy-two-goals'}")
    starts = subject.starts(rows, subject.generator("test"))
    monkeypatch.setattr(subject, "starts", lambda *args: starts)
    monkeypatch.setattr(subject.agent.actor, "forward", lambda *args: action)
    return measure_saturation(subject)


def columns(*shares):
    """100 states: per dimension, how many have the value given beside their share, in turn; the rest 0.6."""
    action = torch.full((100, len(shares)), 0.6)
    for dimension, parts in enumerate(shares):
        at = 0
        for value, count in parts:
            action[at : at + count, dimension] = value
            at += count
    return action


@pytest.mark.parametrize(
    ("shares", "found"),
    [
        (([(0.995, 10)], [(-0.995, 20)]), []),
        (([(0.995, 92)], [(0.995, 50)]), []),  # one dimension bang-bang, the other not
        (([(0.995, 95)], [(-0.995, 90)]), [("policy-nearly-saturated", "note")]),
        (([(1.0, 90)], [(-1.0, 90)]), [("saturated-policy", "broken")]),
        (([(1.0, 30)], [(1.0, 30)]), [("saturated-policy", "broken")]),
        (([(0.9999, 100)], [(0.1, 100)]), [("saturated-policy", "broken")]),
    ],
)
def test_saturation_is_judged_by_how_deep_it_is(shares, found, make_subject, monkeypatch, found_in):
    assert found_in("policy", figures_of(columns(*shares), make_subject, monkeypatch)) == found


def test_one_lost_dimension_is_named(make_subject, monkeypatch):
    figures = figures_of(columns([(0.1, 100)], [(1.0, 60)]), make_subject, monkeypatch)
    assert figures["lost_dimensions"] == [1]


def test_saturation_of_a_constant_policy_is_measured_exactly(make_subject):
    subject = make_subject("actor.kind=gaussian", "actor.init_logstd=-1.427")
    with torch.no_grad():
        subject.agent.actor.mean[-1].weight.zero_()
        subject.agent.actor.mean[-1].bias.fill_(-3.0)
        subject.agent.actor.logstd.fill_(-20.0)  # as good as no noise: a = tanh(-3)
    found = measure_saturation(subject)
    assert found["saturated_share"] == 1.0
    assert found["deeply_saturated_share"] == 0.0
    # float32 rounds a = tanh(-3) to 6e-8, and 1 - a^2 = 1e-2 with it
    assert found["tanh_slope"] == pytest.approx(1.0 - math.tanh(3.0) ** 2, rel=1e-4)


def falling(subject, steps, *, ended):
    """Four episodes of a pendulum that last `steps`."""
    subject.__dict__["episodes"] = Episodes(
        obs=torch.zeros(steps + 1, 4, 3),
        action=torch.zeros(steps, 4, 1),
        reward=torch.ones(steps, 4),
        length=torch.full((4,), steps),
        terminated=torch.full((4,), ended),
        broken=torch.zeros(4, dtype=torch.bool),
        task=torch.zeros(4, dtype=torch.long),
    )
    return subject


@pytest.mark.parametrize(
    ("steps", "ended", "epoch", "found"),
    [
        (17, True, 15_000, [("episodes-end-early", "broken")]),
        (17, True, 1, [("episodes-end-early", "note")]),  # a young run may fall
        (17, False, 15_000, []),  # a short time limit is no fall
        (60, True, 15_000, []),
    ],
)
def test_episodes_that_the_task_ends_early_are_found(steps, ended, epoch, found, make_subject, examine):
    subject = falling(make_subject(), steps, ended=ended)  # the limit is 100
    subject.origin = Origin(epoch=epoch)
    _, findings = examine(subject, "endings")
    assert [(finding.name, finding.severity) for finding in findings] == found
