"""Values against hand-computed returns, and critics that are dead in part or whole."""

import pytest
import torch

from flowmbpo.diagnostics.health.critic import Imagined, check_critic, imagine_values, member_findings, spread_findings
from flowmbpo.diagnostics.health.monte_carlo import MonteCarlo, discounted_returns, judge_values
from flowmbpo.diagnostics.interface import Effort
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
    judged = judge_values(subject, made_episodes([[1.0, 2.0, 4.0]] * 2, [3, 3], [False, False]))
    assert len(judged.returns) == 6  # shares 1/8, 1/4 and 1/2 of each
    assert judged.bootstrap == pytest.approx((1 / 8 + 1 / 4 + 1 / 2) / 3)
    assert judged.offset == pytest.approx((8.0 - 6.0) / judged.size)


def imagined(spread, members=(1.0, 1.0, 1.0), slopes=(1.0, 1.0, 1.0)):
    base = torch.linspace(-1.0, 1.0, 11)
    values = torch.stack([spread * member * base for member in members])
    return Imagined(values, values[0], base, base, torch.tensor(slopes))


def test_a_value_with_the_spread_of_its_targets_is_alive(make_subject):
    assert spread_findings(make_subject(), imagined(1.0), None) == []
    assert spread_findings(make_subject(), imagined(0.5), None) == []  # alone no proof


def test_a_value_that_hardly_varies_is_dead(make_subject):
    (finding,) = spread_findings(make_subject(), imagined(0.1), None)
    assert (finding.name, finding.severity) == ("dead-critic", "broken")
    assert finding.figures["spread_over_targets"] == pytest.approx(0.1)


def test_real_returns_decide_where_targets_leave_doubt(make_subject):
    returns = torch.linspace(0.0, 100.0, 50)
    flat = MonteCarlo(returns * 0.02, returns, 0.0)
    alive = MonteCarlo(returns * 0.8, returns, 0.0)
    assert [f.name for f in spread_findings(make_subject(), imagined(0.4), flat)] == ["dead-critic"]
    assert spread_findings(make_subject(), imagined(0.4), alive) == []
    assert spread_findings(make_subject(), imagined(0.9), flat) == []


@pytest.mark.parametrize(
    ("members", "slopes", "dead"),
    [
        ((1.0, 0.9, 1.1), (1.0, 1.2, 0.9), False),
        ((1.0, 0.0, 1.0), (1.0, 0.0, 1.0), True),
        ((1.0, 0.1, 0.1), (1.0, 0.1, 0.1), True),
        ((1.0, 1.0, 1.0), (1.0, 1.0, 0.0), True),
        ((1.0, 1.0, 1.0), (0.0, 0.0, 0.0), True),
    ],
)
def test_members_are_judged_against_the_liveliest(members, slopes, dead):
    assert bool(member_findings(imagined(1.0, members, slopes))) is dead


def test_a_young_critic_is_told_from_a_dead_one(load_small):
    subject = load_small()
    training = subject.config.training
    updates = subject.origin.epoch * training.rounds * training.critic_iterations * training.critic_batches
    network = subject.agent.critic.network
    signs = torch.ones_like(network.weights[-1])
    signs[:, ::2] = -1.0
    with torch.no_grad():
        network.weights[-1].copy_(0.9 * updates * training.critic_lr * signs)  # every step went the same way
    flat = imagined(0.05)
    assert [(f.name, f.severity) for f in spread_findings(subject, flat, None)] == [("critic-young", "note")]
    with torch.no_grad():
        network.weights[-1].mul_(0.1)
    assert [(f.name, f.severity) for f in spread_findings(subject, flat, None)] == [("dead-critic", "broken")]


def test_targets_are_imagined_as_training_does_whatever_the_replicas(make_subject):
    subject = make_subject("training.noise_replicas=3")
    assert imagine_values(subject, 7).targets.shape == (7,)


def test_a_constant_critic_is_found_on_real_episodes(make_subject):
    subject = make_subject()
    constant_critic(subject, 5.0)
    check = check_critic(subject, Effort(episodes=2))
    assert "dead-critic" in [finding.name for finding in check.findings]
    assert check.figures["value_mean"] == pytest.approx(5.0, rel=1e-5)
