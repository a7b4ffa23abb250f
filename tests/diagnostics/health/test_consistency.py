"""A value is judged by the rewards it holds, not by how well it goes with targets that are made of it."""

import math

import pytest
import torch

from flowmbpo.diagnostics.health.consistency import measure_consistency
from flowmbpo.diagnostics.health.critic import check_critic, consistency_findings, imagine_values, output_travel
from flowmbpo.diagnostics.interface import Effort
from flowmbpo.diagnostics.subject import Origin

STATES = 256
GAMMA = 0.9


def scaled_critic(factor, *, later_spread=10.0, members=1):
    """Values `factor` times the true ones: R = V*(z_0) - gamma V*(z_1), so T = R + gamma factor V*(z_1)."""
    generator = torch.Generator().manual_seed(0)
    later = later_spread * torch.randn(STATES, generator=generator)
    reward = 1.0 + 0.5 * torch.randn(STATES, generator=generator)
    value = factor * (reward + GAMMA * later)
    return measure_consistency(value.expand(members, -1), reward + GAMMA * factor * later, reward)


@pytest.mark.parametrize("factor", [1.0, 0.1, 0.0, -1.0, 100.0])
def test_slope_is_the_factor_by_which_the_value_is_off(factor):
    found = scaled_critic(factor)
    # Sums of 256 float32 numbers of size 10 |factor|: rounding some 1e-6 of that.
    assert found.slope == pytest.approx(factor, abs=1e-5 * max(abs(factor), 1.0))
    assert found.error == pytest.approx(0.0, abs=1e-5 * max(abs(factor), 1.0))


def test_correlation_with_targets_would_not_show_it():
    """At a tenth the value still varies with its targets almost perfectly: they are made of it."""
    found = scaled_critic(0.1, later_spread=100.0)
    assert found.spread == pytest.approx(1.0, abs=0.1)
    assert found.residual < 0.1
    assert found.below(0.35)


def test_standard_error_covers_noise():
    """Noise of standard deviation 2 on V, R of 0.5: the slope's error is 2 / (0.5 sqrt(256)) = 0.25."""
    generator = torch.Generator().manual_seed(1)
    reward = 0.5 * torch.randn(STATES, generator=generator)
    noise = 2.0 * torch.randn(STATES, generator=generator)
    found = measure_consistency((reward + noise).unsqueeze(0), reward, reward)
    assert found.error == pytest.approx(0.25, rel=0.15)  # two estimated spreads of 256 draws: 6% each at 1 sigma
    assert abs(found.slope - 1.0) < 4.0 * found.error
    assert not found.below(0.35)


def test_the_minimum_over_members_is_no_bias():
    """Members that differ at random agree with the targets on average; their minimum lies below."""
    generator = torch.Generator().manual_seed(2)
    reward = 1.0 + 0.5 * torch.randn(STATES, generator=generator)
    differences = torch.randn(3, STATES, generator=generator)
    found = measure_consistency(reward + differences - differences.mean(0), reward, reward)
    assert found.slope == pytest.approx(1.0, abs=1e-5)  # rounding
    assert found.residual == pytest.approx(0.0, abs=1e-5)


def test_rewards_that_do_not_vary_judge_nothing():
    reward = torch.ones(STATES)
    found = measure_consistency(torch.zeros(1, STATES), reward, reward)
    assert math.isnan(found.slope)
    assert not found.below(0.35)
    assert not found.leaves(0.7)
    assert not found.too_large


def test_rewards_are_the_targets_of_a_critic_that_knows_nothing(make_subject):
    subject = make_subject("training.reward_normalization=none")
    network = subject.agent.critic.network
    with torch.no_grad():
        network.weights[-1].zero_()
        network.biases[-1].zero_()
    found = imagine_values(subject, 16)
    assert torch.equal(found.targets, found.rewards)


@pytest.mark.parametrize(
    ("factor", "name"), [(1.0, None), (0.1, "dead-critic"), (-1.0, "dead-critic"), (100.0, "critic-off")]
)
def test_critics_of_the_wrong_size_are_named(factor, name, make_subject):
    subject = make_subject()
    subject.origin = Origin(epoch=1000)  # its weights have moved by 0.1, and could have moved by far more
    names = [finding.name for finding in consistency_findings(subject, scaled_critic(factor))]
    assert names == ([] if name is None else [name])


def test_a_critic_that_still_moves_may_hold_little(make_subject):
    """It falls behind where the policy changes, and large values hold next to nothing while they grow."""
    subject = make_subject()
    training = subject.config.training
    subject.origin = Origin(epoch=1)
    with torch.no_grad():
        steps = training.rounds * training.critic_iterations * training.critic_batches
        subject.agent.critic.network.weights[-1].fill_(0.5 * steps * training.critic_lr)
    assert output_travel(subject) == pytest.approx(0.5)
    assert consistency_findings(subject, scaled_critic(0.1)) == []
    assert [f.name for f in consistency_findings(subject, scaled_critic(-1.0))] == ["dead-critic"]


def test_a_value_that_goes_its_own_way_is_dead(make_subject):
    generator = torch.Generator().manual_seed(3)
    value, target = torch.randn(2, STATES, generator=generator)
    found = measure_consistency(value.unsqueeze(0), target, target)
    assert [f.name for f in consistency_findings(make_subject(), found)] == ["dead-critic"]


def test_a_critic_set_not_to_learn_is_dead(make_subject):
    subject = make_subject()
    next(iter(subject.agent.critic.parameters())).requires_grad_(False)
    (finding,) = [f for f in check_critic(subject, Effort()).findings if "frozen_tensors" in f.figures]
    assert (finding.name, finding.severity) == ("dead-critic", "broken")
