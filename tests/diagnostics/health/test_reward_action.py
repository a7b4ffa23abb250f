"""Whether the reward head reads the action, where real rewards depend on it."""

import pytest
import torch
from torch import nn

from flowmbpo.diagnostics.health.experience import Stretches
from flowmbpo.diagnostics.health.reward import check_reward
from flowmbpo.diagnostics.health.reward_action import flat_in_action, share_of_action
from flowmbpo.diagnostics.interface import Effort

ROWS = 800


def rows_of(reward):
    """Random observations and actions in 40 blocks, and the reward of both."""
    generator = torch.Generator().manual_seed(0)
    obs = torch.randn(2, ROWS, 2, generator=generator)
    action = torch.rand(1, ROWS, 1, generator=generator) * 2.0 - 1.0
    zero = torch.zeros(ROWS, dtype=torch.long)
    rows = Stretches(obs, action, reward(obs[0], action[0]).unsqueeze(0), zero, torch.arange(ROWS) // 20, zero)
    return rows, torch.randperm(ROWS, generator=generator)


def both(obs, action):
    return obs[:, 0] + action[:, 0]


def share_of(head, reward=both):
    rows, other = rows_of(reward)
    obs, action = rows.obs[0], rows.action[0]
    return share_of_action(rows, head(obs, action), head(obs, action[other]), other)


def test_a_head_that_knows_the_reward_responds_as_the_regression_does():
    share = share_of(both)
    assert share.response == pytest.approx(1.0, abs=0.02)  # the regression is linear here, and nearly exact
    assert share.matters.effect > 3.0 and not share.ignored


@pytest.mark.parametrize("left", [0.0, 0.05])
def test_a_head_that_hardly_reads_the_action_ignores_it(left):
    share = share_of(lambda obs, action: obs[:, 0] + left * action[:, 0])
    assert share.response == pytest.approx(left, abs=0.01) and share.ignored
    assert flat_in_action(share).name == "flat-reward-head"


def test_rewards_of_the_state_alone_ask_no_response():
    share = share_of(lambda obs, action: obs[:, 0], reward=lambda obs, action: obs[:, 0])
    assert share.matters.effect < 0.5 and not share.ignored


def test_a_head_as_good_as_the_regression_is_not_flat_however_little_it_responds():
    """Where the regression gains from an action that betrays the state, the head needs no such hint."""
    rows, other = rows_of(lambda obs, action: obs[:, 0] * obs[:, 1])
    rows.action[0, :, 0] = rows.obs[0, :, 0] * rows.obs[0, :, 1]
    exact = rows.reward[0]
    share = share_of_action(rows, exact, exact, other)
    assert share.matters.effect > 0.5 and share.response == 0.0 and not share.ignored


def test_a_run_is_asked_how_its_head_responds(load_small):
    subject = load_small()
    assert check_reward(subject, Effort()).figures["action"]["response_over_regression"] > 0.05
    first = next(part for part in subject.agent.world_model.reward_head.modules() if isinstance(part, nn.Linear))
    with torch.no_grad():
        first.weight[:, -2:] = 0.0
    assert check_reward(subject, Effort()).figures["action"]["response_over_regression"] == 0.0


def test_no_transitions_are_not_judged(load_small):
    subject = load_small()
    subject.replay = None
    subject.explored.length.zero_()
    subject.episodes.length.zero_()
    check = check_reward(subject, Effort())
    assert check.findings == () and check.figures["judged"].startswith("no")


def test_predictions_that_are_no_numbers_are_no_healthy_ones(load_small, monkeypatch):
    subject = load_small()
    reward = subject.agent.world_model.reward
    monkeypatch.setattr(subject.agent.world_model, "reward", lambda *args: reward(*args) * float("nan"))
    assert "flat-reward-head" in {finding.name for finding in check_reward(subject, Effort()).findings}
