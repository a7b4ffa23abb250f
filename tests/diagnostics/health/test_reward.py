"""The reward head against real rewards."""

import math

import pytest
import torch

from flowmbpo.diagnostics.health.experience import fresh_stretches
from flowmbpo.diagnostics.health.reward import check_reward, fit_rewards, gradient_agreement, intervals, stored_scale
from flowmbpo.diagnostics.interface import Effort

EFFORT = Effort(resamples=100)


def real_rewards(rows=400):
    return torch.rand(rows, generator=torch.Generator().manual_seed(0)) * 2.0 + 1.0


def names(check):
    return {finding.name for finding in check.findings}


def test_the_figures_of_a_line_are_those_of_the_line():
    real = real_rewards()
    fit = fit_rewards(real, 0.5 * real + 1.0, real)
    assert fit.correlation == pytest.approx(1.0, abs=1e-6)
    assert fit.slope == pytest.approx(0.5, abs=1e-6) == fit.spread_ratio
    assert fit.reference_r2 == pytest.approx(1.0)
    assert fit.rms_ratio == pytest.approx(float((0.5 * real + 1.0).norm() / real.norm()), rel=1e-6)


def test_rewards_off_by_a_factor_keep_their_cosine():
    real = real_rewards()
    fit = fit_rewards(real, 100.0 * real, real)
    assert (fit.cosine, fit.rms_ratio, fit.slope) == pytest.approx((1.0, 100.0, 100.0), rel=1e-5)


def test_constant_rewards_do_not_vary_and_divide_nothing():
    fit = fit_rewards(torch.full((50,), 3.0), torch.zeros(50), torch.full((50,), 3.0))
    assert not fit.varies
    assert (fit.correlation, fit.slope, fit.cosine, fit.rms_ratio) == (0.0, 0.0, 0.0, 0.0)


def test_intervals_hold_the_figures_of_all_rows():
    real = real_rewards()
    predicted = 0.8 * real + 0.1 * real_rewards(400).flip(0)
    block = torch.arange(400) // 20
    generator = torch.Generator().manual_seed(1)
    correlation, slope = intervals(real, predicted, block, generator, 200)
    fit = fit_rewards(real, predicted, real)
    assert correlation.value == pytest.approx(fit.correlation) and slope.value == pytest.approx(fit.slope)
    assert correlation.low < correlation.value < correlation.high
    assert slope.low < slope.value < slope.high


def test_a_sound_head_is_left_alone(load_small):
    check = check_reward(load_small(), EFFORT)
    assert not check.findings
    assert check.figures["correlation"]["value"] > 0.9
    assert len(check.curves["real"]) == len(check.curves["predicted"]) > 0


def test_the_gradient_of_a_sound_head_is_that_of_its_predictions(load_small):
    subject = load_small()
    rows = fresh_stretches(subject.explored, width=1, limit=200, generator=subject.generator("test"))
    for agreement in gradient_agreement(subject, rows, subject.generator("test")).values():
        assert agreement.slope == pytest.approx(1.0, abs=0.01)  # float32 differences


@pytest.mark.parametrize("share", [0.0, 0.1])
def test_a_gradient_that_is_cut_or_scaled_is_a_flat_head(share, load_small, monkeypatch):
    subject = load_small()
    model = subject.agent.world_model
    reward = model.reward

    def scaled(z, action, context):
        found = reward(z, action, context)
        return found.detach() + share * (found - found.detach())

    monkeypatch.setattr(model, "reward", scaled)
    check = check_reward(subject, EFFORT)
    assert names(check) == {"flat-reward-head"}
    assert "gradient" in check.findings[0].message


@pytest.mark.parametrize("factor", [5.0, 0.2])
def test_moments_that_are_not_those_of_the_stored_rewards_are_a_wrong_scale(factor, load_small):
    subject = load_small()
    assert stored_scale(subject) == pytest.approx(1.0, abs=1e-3)  # float32 storage
    subject.agent.reward_normalizer.moments.total_square *= factor**2
    assert stored_scale(subject) == pytest.approx(1.0 / factor, abs=1e-3)
    assert "reward-scale" in names(check_reward(subject, EFFORT))


def test_a_buffer_that_has_lost_most_of_its_past_does_not_judge_the_moments(load_small):
    subject = load_small()
    subject.agent.reward_normalizer.moments.count *= 3.0
    assert stored_scale(subject) is None


def test_a_head_that_knows_only_the_mean_is_flat(load_small):
    subject = load_small()
    head = subject.agent.world_model.reward_head.network[-1]
    with torch.no_grad():
        head.weight *= 0.1
        head.bias.fill_(1.0)
    assert "flat-reward-head" in names(check_reward(subject, EFFORT))


def test_rewards_that_nothing_explains_are_no_reason_to_call_a_head_flat(load_small, monkeypatch):
    """A regression explains nothing of pure noise either: there is nothing to hold the head to."""
    subject = load_small()
    noise = torch.Generator().manual_seed(0)
    for episodes in (subject.episodes, subject.explored):
        episodes.reward.copy_(torch.randn(episodes.reward.shape, generator=noise) * episodes.valid)
    subject.replay = None
    assert "flat-reward-head" not in names(check_reward(subject, EFFORT))


def test_rewards_that_do_not_vary_cannot_judge_a_head(load_small):
    subject = load_small()
    for episodes in (subject.episodes, subject.explored):
        episodes.reward.copy_(episodes.valid.float())
    subject.replay = None
    check = check_reward(subject, EFFORT)
    assert not check.findings and "do not vary" in check.figures["judged"]


def test_figures_are_plain_numbers(load_small):
    figures = check_reward(load_small(), EFFORT).figures["fresh_episodes"]
    assert all(math.isfinite(value) for value in figures.values())
