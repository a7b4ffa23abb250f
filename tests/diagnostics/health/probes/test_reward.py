"""The reward head against real rewards."""

import math

import pytest
import torch
from torch import nn

from flowmbpo.diagnostics.health.experience import TransitionWindows, fresh_windows
from flowmbpo.diagnostics.health.probes.reward import (
    fit_rewards,
    gradient_agreement,
    share_of_action,
    stored_scale,
)


def real_rewards(rows=400):
    return torch.rand(rows, generator=torch.Generator().manual_seed(0)) * 2.0 + 1.0


def test_the_figures_of_a_line_are_those_of_the_line():
    real = real_rewards()
    fit = fit_rewards(real, 0.5 * real + 1.0, real)
    assert fit["correlation"] == pytest.approx(1.0, abs=1e-6)
    assert fit["slope"] == pytest.approx(0.5, abs=1e-6) == fit["spread_ratio"]
    assert fit["reference_r2"] == pytest.approx(1.0)
    assert fit["rms_ratio"] == pytest.approx(float((0.5 * real + 1.0).norm() / real.norm()), rel=1e-6)


def test_rewards_off_by_a_factor_keep_their_cosine():
    real = real_rewards()
    fit = fit_rewards(real, 100.0 * real, real)
    assert (fit["cosine"], fit["rms_ratio"], fit["slope"]) == pytest.approx((1.0, 100.0, 100.0), rel=1e-5)


def test_constant_rewards_do_not_vary_and_divide_nothing():
    fit = fit_rewards(torch.full((50,), 3.0), torch.zeros(50), torch.full((50,), 3.0))
    assert not fit["varies"]
    assert [fit[key] for key in ("correlation", "slope", "cosine", "rms_ratio")] == [0.0] * 4


def test_a_sound_head_follows_the_rewards_and_the_action(sound_health):
    figures, curves = sound_health.checks["reward"], sound_health.curves["reward"]
    assert figures["fresh_episodes"]["correlation"] > 0.9
    assert len(curves["real"]) == len(curves["predicted"]) > 0
    assert figures["action"]["response_over_regression"] > 0.05
    assert all(math.isfinite(value) for value in figures["fresh_episodes"].values() if value is not None)


def test_the_gradient_of_a_sound_head_is_its_predictions(sound):
    subject = sound
    rows = fresh_windows(subject.explored, width=1, limit=200, generator=subject.generator("test"))
    for agreement in gradient_agreement(subject, rows, subject.generator("test")).values():
        assert agreement["slope"] == pytest.approx(1.0, abs=0.01)  # float32 differences


@pytest.mark.parametrize("share", [0.0, 0.1])
def test_a_gradient_that_is_cut_or_scaled_is_a_flat_head(share, load_small, monkeypatch, examine):
    subject = load_small()
    model = subject.agent.world_model
    reward = model.reward

    def scaled(z, action, context):
        found = reward(z, action, context)
        return found.detach() + share * (found - found.detach())

    monkeypatch.setattr(model, "reward", scaled)
    _, (finding,) = examine(subject, "reward")
    assert finding.name == "flat-reward-head" and "gradient" in finding.message


@pytest.mark.parametrize("factor", [5.0, 0.2])
def test_moments_not_of_the_stored_rewards_are_a_wrong_scale(factor, load_small, named):
    subject = load_small()
    assert stored_scale(subject) == pytest.approx(1.0, abs=1e-3)  # float32 storage
    subject.agent.reward_normalizer.moments.total_square *= factor**2
    assert stored_scale(subject) == pytest.approx(1.0 / factor, abs=1e-3)
    assert "reward-scale" in named(subject, "reward")


def test_a_buffer_that_has_lost_most_of_its_past_does_not_judge_the_moments(load_small):
    subject = load_small()
    subject.agent.reward_normalizer.moments.count *= 3.0
    assert stored_scale(subject) is None


def test_a_head_that_knows_only_the_mean_is_flat(load_small, named):
    subject = load_small()
    head = subject.agent.world_model.reward_head.network[-1]
    with torch.no_grad():
        head.weight *= 0.1
        head.bias.fill_(1.0)
    assert "flat-reward-head" in named(subject, "reward")


def test_rewards_that_nothing_explains_make_no_head_flat(load_small, named):
    """A regression explains nothing of pure noise either: there is nothing to hold the head to."""
    subject = load_small()
    noise = torch.Generator().manual_seed(0)
    for episodes in (subject.episodes, subject.explored):
        episodes.reward.copy_(torch.randn(episodes.reward.shape, generator=noise) * episodes.valid)
    subject.replay = None
    assert "flat-reward-head" not in named(subject, "reward")


def test_rewards_that_do_not_vary_cannot_judge_a_head(load_small, examine):
    subject = load_small()
    for episodes in (subject.episodes, subject.explored):
        episodes.reward.copy_(episodes.valid.float())
    subject.replay = None
    figures, found = examine(subject, "reward")
    assert found == [] and "do not vary" in figures["judged"]


ROWS = 800


def rows_of(reward):
    """Random observations and actions in 40 blocks, and the reward of both."""
    generator = torch.Generator().manual_seed(0)
    obs = torch.randn(2, ROWS, 2, generator=generator)
    action = torch.rand(1, ROWS, 1, generator=generator) * 2.0 - 1.0
    zero = torch.zeros(ROWS, dtype=torch.long)
    rows = TransitionWindows(obs, action, reward(obs[0], action[0]).unsqueeze(0), zero, torch.arange(ROWS) // 20)
    return rows, torch.randperm(ROWS, generator=generator)


def both(obs, action):
    return obs[:, 0] + action[:, 0]


def share_of(head, reward=both):
    rows, other = rows_of(reward)
    obs, action = rows.obs[0], rows.action[0]
    return share_of_action(rows, head(obs, action), head(obs, action[other]), other)


def test_a_head_that_knows_the_reward_responds_as_the_regression_does():
    share = share_of(both)
    assert share["response_over_regression"] == pytest.approx(1.0, abs=0.02)  # linear here, and nearly exact
    assert share["without_action"]["effect"] > 3.0


@pytest.mark.parametrize("left", [0.0, 0.05])
def test_a_head_that_hardly_reads_the_action_is_flat(left, found_in):
    share = share_of(lambda obs, action: obs[:, 0] + left * action[:, 0])
    assert share["response"] == pytest.approx(left, abs=0.01)
    assert found_in("reward", {"action": share}) == [("flat-reward-head", "broken")]


def test_rewards_of_the_state_alone_ask_no_response():
    share = share_of(lambda obs, action: obs[:, 0], reward=lambda obs, action: obs[:, 0])
    assert share["without_action"]["effect"] < 0.5 and share["response"] is None


def test_a_head_as_good_as_the_regression_need_not_respond():
    """Where the regression gains from an action that betrays the state, the head needs no such hint."""
    rows, other = rows_of(lambda obs, action: obs[:, 0] * obs[:, 1])
    rows.action[0, :, 0] = rows.obs[0, :, 0] * rows.obs[0, :, 1]
    exact = rows.reward[0]
    share = share_of_action(rows, exact, exact, other)
    assert share["without_action"]["effect"] > 0.5
    assert share["response_over_regression"] == 0.0 and share["response"] is None


def test_a_head_without_the_action_does_not_respond(load_small, examine):
    subject = load_small()
    first = next(part for part in subject.agent.world_model.reward_head.modules() if isinstance(part, nn.Linear))
    with torch.no_grad():
        first.weight[:, -2:] = 0.0
    assert examine(subject, "reward")[0]["action"]["response_over_regression"] == 0.0


def test_no_transitions_are_not_judged(load_small, examine):
    subject = load_small()
    subject.replay = None
    subject.explored.length.zero_()
    subject.episodes.length.zero_()
    figures, found = examine(subject, "reward")
    assert found == [] and figures["judged"].startswith("no")


def test_predictions_that_are_nan_are_not_healthy(load_small, monkeypatch, named):
    subject = load_small()
    reward = subject.agent.world_model.reward
    monkeypatch.setattr(subject.agent.world_model, "reward", lambda *args: reward(*args) * float("nan"))
    assert "flat-reward-head" in named(subject, "reward")
