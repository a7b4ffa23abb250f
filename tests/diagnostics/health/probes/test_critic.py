"""Values against hand-computed returns, and critics that are dead in part or whole."""

import math

import pytest
import torch

from flowmbpo.diagnostics.health.probes.critic import (
    accounted_real_rewards,
    accounted_rewards,
    dead_members,
    discounted_returns,
    imagine_values,
    judge_values,
    output_travel,
)
from flowmbpo.diagnostics.subject import Origin
from flowmbpo.evaluation.episodes import Episodes


def constant_critic(subject, value):
    network = subject.agent.critic.network
    with torch.no_grad():
        network.weights[-1].zero_()
        network.biases[-1].fill_(value)


def made_episodes(rewards, length, terminated):
    """Two episodes of a pendulum's observation width, padded behind their length."""
    steps = len(rewards[0])
    return Episodes(
        obs=torch.zeros(steps + 1, 2, 3),
        action=torch.zeros(steps, 2, 1),
        reward=torch.tensor(rewards).T.contiguous(),
        length=torch.tensor(length),
        terminated=torch.tensor(terminated),
        broken=torch.tensor([False, False]),
        task=torch.tensor([0, 0]),
    )


def test_returns_bootstrap_at_a_time_limit_and_not_at_an_end(make_subject):
    subject = make_subject("training.gamma=0.5", "training.reward_normalization=none")
    constant_critic(subject, 8.0)
    episodes = made_episodes([[1.0, 2.0, 4.0], [1.0, 2.0, 0.0]], [3, 2], [False, True])
    returns, share = discounted_returns(subject, episodes)
    # Time limit: G_2 = 4 + 8/2 = 8, G_1 = 2 + 8/2 = 6, G_0 = 1 + 6/2 = 4. Ended: G_1 = 2, G_0 = 1 + 2/2 = 2.
    assert returns[:, 0].tolist() == pytest.approx([4.0, 6.0, 8.0])
    assert returns[:2, 1].tolist() == pytest.approx([2.0, 2.0])
    assert share[:, 0].tolist() == pytest.approx([0.125, 0.25, 0.5])
    assert share[:2, 1].tolist() == [0.0, 0.0]


def test_returns_are_in_learning_rewards(make_subject):
    subject = make_subject("training.gamma=0.5", "training.reward_normalization=scale")
    constant_critic(subject, 0.0)
    subject.agent.reward_normalizer.update(torch.tensor([4.0, -4.0]))  # RMS 4
    returns, _ = discounted_returns(subject, made_episodes([[4.0, 8.0], [0.0, 4.0]], [2, 2], [True, False]))
    assert returns.T.tolist() == [[2.0, 2.0], [0.5, 1.0]]


def test_states_that_are_mostly_bootstrap_are_left_out(make_subject):
    subject = make_subject("training.gamma=0.5", "training.reward_normalization=none")
    constant_critic(subject, 8.0)
    figures = judge_values(subject, made_episodes([[1.0, 2.0, 4.0]] * 2, [3, 3], [False, False]))
    assert len(figures["curves"]["return"]) == 6  # shares 1/8, 1/4 and 1/2 of each
    assert figures["bootstrapped_share"] == pytest.approx((1 / 8 + 1 / 4 + 1 / 2) / 3)
    assert figures["value_mean"] - figures["return_mean"] == pytest.approx(8.0 - 6.0)


HOLDS_ALL = {"slope": 1.0, "low": 1.0, "high": 1.0, "standard_error": 0.0, "residual": 0.0, "spread": 1.0}


def figures_of(spread, over_returns=None, share=HOLDS_ALL):
    """Of a value with so much of its targets' spread, and of real returns' where there are episodes."""
    figures = {"spread_over_targets": spread, "value_varies": True, "beside_returns": ""}
    if over_returns is not None:
        figures |= {"returns_vary": True, "spread_over_returns": over_returns}
    return figures | {"rewards_accounted_for": {"target_spread": 1.0} | share}


@pytest.mark.parametrize(
    ("spread", "over_returns", "dead"),
    [
        (1.0, None, False),
        (0.5, None, False),  # alone no proof
        (0.1, None, True),
        (0.4, 0.02, True),  # real returns decide where targets leave doubt
        (0.4, 0.8, False),
        (0.9, 0.02, False),
    ],
)
def test_a_value_that_hardly_varies_is_dead(spread, over_returns, dead, make_subject, found_in):
    found = found_in("critic", figures_of(spread, over_returns), make_subject())
    assert found == ([("dead-critic", "broken")] if dead else [])


@pytest.mark.parametrize(
    ("members", "slopes", "dead"),
    [
        ((1.0, 0.9, 1.1), (1.0, 1.2, 0.9), []),
        ((1.0, 0.0, 1.0), (1.0, 0.0, 1.0), [1]),
        ((1.0, 0.1, 0.1), (1.0, 0.1, 0.1), [1, 2]),
        ((1.0, 1.0, 1.0), (1.0, 1.0, 0.0), [2]),
        ((1.0, 1.0, 1.0), (0.0, 0.0, 0.0), [0, 1, 2]),
    ],
)
def test_members_are_judged_against_the_liveliest(members, slopes, dead):
    assert dead_members(torch.tensor(members), torch.tensor(slopes)) == dead


def test_a_young_critic_is_told_from_a_dead_one(load_small, found_in):
    subject = load_small()
    training = subject.config.training
    updates = subject.origin.epoch * training.rounds * training.critic_iterations * training.critic_batches
    network = subject.agent.critic.network
    signs = torch.ones_like(network.weights[-1])
    signs[:, ::2] = -1.0
    with torch.no_grad():
        network.weights[-1].copy_(0.9 * updates * training.critic_lr * signs)  # every step went the same way
    assert found_in("critic", figures_of(0.05), subject) == [("critic-young", "note")]
    with torch.no_grad():
        network.weights[-1].mul_(0.1)
    assert found_in("critic", figures_of(0.05), subject) == [("dead-critic", "broken")]


def test_targets_are_imagined_as_training_does_whatever_the_replicas(make_subject):
    subject = make_subject("training.noise_replicas=3")
    assert imagine_values(subject, 7).targets.shape == (7,)


def test_a_constant_critic_is_found_on_real_episodes(make_subject, examine):
    subject = make_subject()
    constant_critic(subject, 5.0)
    figures, found = examine(subject, "critic")
    assert "dead-critic" in [finding.name for finding in found]
    assert figures["value_mean"] == pytest.approx(5.0, rel=1e-5)


STATES = 256
GAMMA = 0.9


def scaled_critic(factor, *, later_spread=10.0, members=1):
    """Values `factor` times the true ones: R = V*(z_0) - gamma V*(z_1), so T = R + gamma factor V*(z_1)."""
    generator = torch.Generator().manual_seed(0)
    later = later_spread * torch.randn(STATES, generator=generator)
    reward = 1.0 + 0.5 * torch.randn(STATES, generator=generator)
    value = factor * (reward + GAMMA * later)
    return accounted_rewards(value.expand(members, -1), reward + GAMMA * factor * later, reward)


@pytest.mark.parametrize("factor", [1.0, 0.1, 0.0, -1.0, 100.0])
def test_slope_is_the_factor_by_which_the_value_is_off(factor):
    found = scaled_critic(factor)
    # Sums of 256 float32 numbers of size 10 |factor|: rounding some 1e-6 of that.
    assert found["slope"] == pytest.approx(factor, abs=1e-5 * max(abs(factor), 1.0))
    assert found["standard_error"] == pytest.approx(0.0, abs=1e-5 * max(abs(factor), 1.0))


def test_correlation_with_targets_would_not_show_it():
    """At a tenth the value still varies with its targets almost perfectly: they are made of it."""
    found = scaled_critic(0.1, later_spread=100.0)
    assert found["spread"] == pytest.approx(1.0, abs=0.1)
    assert found["residual"] < 0.1
    assert found["high"] < 0.35


def test_standard_error_covers_noise():
    """Noise of standard deviation 2 on V, R of 0.5: the slope's error is 2 / (0.5 sqrt(256)) = 0.25."""
    generator = torch.Generator().manual_seed(1)
    reward = 0.5 * torch.randn(STATES, generator=generator)
    noise = 2.0 * torch.randn(STATES, generator=generator)
    found = accounted_rewards((reward + noise).unsqueeze(0), reward, reward)
    assert found["standard_error"] == pytest.approx(
        0.25, rel=0.15
    )  # two estimated spreads of 256 draws: 6% each at 1 sigma
    assert abs(found["slope"] - 1.0) < 4.0 * found["standard_error"]
    assert not found["high"] < 0.35


def test_the_minimum_over_members_is_no_bias():
    """Members that differ at random agree with the targets on average; their minimum lies below."""
    generator = torch.Generator().manual_seed(2)
    reward = 1.0 + 0.5 * torch.randn(STATES, generator=generator)
    differences = torch.randn(3, STATES, generator=generator)
    found = accounted_rewards(reward + differences - differences.mean(0), reward, reward)
    assert found["slope"] == pytest.approx(1.0, abs=1e-5)  # rounding
    assert found["residual"] == pytest.approx(0.0, abs=1e-5)


def test_rewards_that_do_not_vary_judge_nothing(make_subject, found_in):
    reward = torch.ones(STATES)
    found = accounted_rewards(torch.zeros(1, STATES), reward, reward)
    assert math.isnan(found["slope"])
    assert found_in("critic", figures_of(1.0, share=found), make_subject()) == []


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
def test_critics_of_the_wrong_size_are_named(factor, name, make_subject, found_in):
    subject = make_subject()
    subject.origin = Origin(epoch=1000)  # its weights have moved by 0.1, and could have moved by far more
    found = found_in("critic", figures_of(1.0, share=scaled_critic(factor)), subject)
    assert found == ([] if name is None else [(name, "broken")])


def test_a_critic_that_still_moves_may_hold_little(make_subject, found_in):
    """It falls behind where the policy changes, and large values hold next to nothing while they grow."""
    subject = make_subject()
    training = subject.config.training
    subject.origin = Origin(epoch=1)
    with torch.no_grad():
        steps = training.rounds * training.critic_iterations * training.critic_batches
        subject.agent.critic.network.weights[-1].fill_(0.5 * steps * training.critic_lr)
    assert output_travel(subject) == pytest.approx(0.5)
    assert found_in("critic", figures_of(1.0, share=scaled_critic(0.1)), subject) == []
    assert found_in("critic", figures_of(1.0, share=scaled_critic(-1.0)), subject) == [("dead-critic", "broken")]


def test_a_value_that_goes_its_own_way_is_dead(make_subject, found_in):
    generator = torch.Generator().manual_seed(3)
    value, target = torch.randn(2, STATES, generator=generator)
    share = accounted_rewards(value.unsqueeze(0), target, target)
    assert found_in("critic", figures_of(1.0, share=share), make_subject()) == [("dead-critic", "broken")]


def test_a_critic_set_not_to_learn_is_dead(make_subject, examine):
    subject = make_subject()
    next(iter(subject.agent.critic.parameters())).requires_grad_(False)
    (finding,) = [finding for finding in examine(subject, "critic")[1] if "frozen_tensors" in finding.figures]
    assert (finding.name, finding.severity) == ("dead-critic", "broken")


def test_a_value_that_is_the_return_accounts_for_real_rewards(make_subject, monkeypatch):
    """V(z_t) - gamma^k V(z_{t+k}) is then what is earned between; of a value upside down it is the opposite.

    Behind an episode's end, and at the state in which the task ended it, stands what would spoil both.
    """
    subject = make_subject()
    reward = torch.randn(200, 2, generator=torch.Generator().manual_seed(0))
    episodes = made_episodes(reward.T.tolist(), length=[200, 140], terminated=[False, True])
    gamma = subject.config.training.gamma
    episodes.obs[200, 0, 0] = 3.0
    for t in reversed(range(200)):
        after = torch.where(torch.tensor([200, 140]) == t + 1, torch.tensor([3.0, 0.0]), episodes.obs[t + 1, :, 0])
        episodes.obs[t, :, 0] = reward[t] + gamma * after
    episodes.obs[140:, 1] = 1e3
    monkeypatch.setattr(subject, "encode", lambda obs, task: (obs, subject.agent.world_model.context(task)))
    monkeypatch.setattr(subject.agent.world_model, "latent", lambda s: s)
    for sign in (1.0, -1.0):
        monkeypatch.setattr(subject.agent.critic, "forward", lambda z, context, sign=sign: sign * z[None, :, 0])
        figures = accounted_real_rewards(subject, episodes)
        assert figures["slope"] == pytest.approx(sign, abs=1e-4)
        assert figures["correlation"] == pytest.approx(sign, abs=1e-4)
        assert figures["correlation_high"] == pytest.approx(sign, abs=0.01)


@pytest.mark.parametrize(("length", "reward"), [([8, 8], 1.0), ([200, 200], 0.0)])
def test_too_few_windows_or_equal_rewards_show_no_slopes(length, reward, make_subject):
    noise = torch.randn(2, max(length)) * reward + 1.0
    figures = accounted_real_rewards(make_subject(), made_episodes(noise.tolist(), length, [False, False]))
    assert figures["correlation_high"] is None


def test_a_value_far_from_its_targets_that_holds_the_rewards_is_behind(make_subject, found_in):
    """As seen on a latent whose policy improves fast: twice the rewards, and 1.1 of the spread unexplained."""
    share = {"slope": 2.0, "standard_error": 0.13, "low": 1.74, "high": 2.26, "residual": 1.1, "spread": 1.3}
    figures = {
        "spread_over_targets": 1.3,
        "value_varies": True,
        "rewards_accounted_for": share | {"target_spread": 0.9},
    }
    assert found_in("critic", figures, make_subject()) == [("critic-off", "note")]
