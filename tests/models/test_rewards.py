"""Reward heads learn, and give the action a gradient."""

import pytest
import torch
from pydantic import TypeAdapter, ValidationError

from flowmbpo.config.model import RewardConfig, ScalarRewardConfig, TwoHotRewardConfig
from flowmbpo.models.build import build_reward
from flowmbpo.nets.two_hot import symexp, two_hot

HEADS = {
    "scalar": ScalarRewardConfig(units=(32, 32)),
    "two_hot": TwoHotRewardConfig(units=(32, 32)),
    "two_hot symlog": TwoHotRewardConfig(units=(32, 32), decode="symlog"),
}


def trained(config, target, inputs, updates=300):
    torch.manual_seed(0)
    head = build_reward(config, inputs.shape[-1])
    optimiser = torch.optim.Adam(head.parameters(), lr=5e-3)
    for _ in range(updates):
        optimiser.zero_grad()
        head.loss(inputs, target).mean().backward()
        optimiser.step()
    return head


@pytest.mark.parametrize("name", HEADS)
def test_predictions_track_the_reward_and_the_action_gets_its_gradient(name):
    # A reward of both signs; the last column is the action, and d reward / d action is 2.
    inputs = torch.rand(256, 6, generator=torch.Generator().manual_seed(0)) * 2 - 1
    reward = 2.0 * inputs[:, -1] + inputs[:, 0]
    head = trained(HEADS[name], reward, inputs)
    probe = inputs.clone().requires_grad_()
    predicted = head(probe)
    in_units = symexp(predicted) if name == "two_hot symlog" else predicted
    assert (in_units - reward).square().mean() < 0.02 * reward.var()
    (gradient,) = torch.autograd.grad(in_units.sum(), probe)
    assert gradient[:, -1].mean().item() == pytest.approx(2.0, rel=0.2)
    assert gradient[:, 0].mean().item() == pytest.approx(1.0, rel=0.2)


def test_two_hot_learns_rewards_of_very_different_size():
    inputs = torch.eye(4)
    reward = torch.tensor([0.01, -1.0, 30.0, -2000.0])
    torch.testing.assert_close(trained(HEADS["two_hot"], reward, inputs)(inputs), reward, rtol=0.1, atol=0.02)


def test_symlog_decoding_leaves_out_the_symexp():
    inputs = torch.randn(5, 6, generator=torch.Generator().manual_seed(0))
    heads = [trained(HEADS[name], torch.full((5,), 50.0), inputs, updates=20) for name in ("two_hot", "two_hot symlog")]
    plain, symlog = (head(inputs) for head in heads)
    torch.testing.assert_close(symexp(symlog), plain)
    assert not torch.allclose(symlog, plain, rtol=0.1)


@pytest.mark.parametrize("name", HEADS)
def test_an_untrained_head_predicts_zero(name):
    head = build_reward(HEADS[name], 6)
    torch.testing.assert_close(head(torch.randn(5, 6)), torch.zeros(5), rtol=0, atol=1e-5)


def test_losses_are_per_sample_and_as_defined():
    torch.manual_seed(0)
    inputs, reward = torch.randn(5, 6), torch.randn(5)
    scalar, bins = (
        build_reward(ScalarRewardConfig(units=(8,)), 6),
        build_reward(TwoHotRewardConfig(units=(8,), bins=11), 6),
    )
    for head in (scalar, bins):
        torch.nn.init.normal_(head.network[-1].weight)
    torch.testing.assert_close(scalar.loss(inputs, reward), (scalar(inputs) - reward) ** 2)
    target = two_hot(reward, torch.linspace(-10.0, 10.0, 11))
    expected = torch.nn.functional.cross_entropy(bins.network(inputs), target, reduction="none")
    torch.testing.assert_close(bins.loss(inputs, reward), expected)


def test_the_bins_are_those_of_the_config_and_no_weights():
    head = build_reward(TwoHotRewardConfig(units=(8,), bins=5, low=-2.0, high=6.0), 6)
    assert head.bins.tolist() == [-2.0, 0.0, 2.0, 4.0, 6.0]
    assert head.network[-1].out_features == 5
    assert not any("bins" in key for key in head.state_dict())


@pytest.mark.parametrize(
    "options",
    [
        {"kind": "scalar", "bins": 101},
        {"kind": "two_hot", "loss": "mse"},
        {"kind": "two_hot", "low": 1.0, "high": 1.0},
        {"kind": "two_hot", "bins": 2},
        {"kind": "mse"},
    ],
)
def test_mixtures_of_the_two_heads_cannot_be_configured(options):
    with pytest.raises(ValidationError):
        TypeAdapter(RewardConfig).validate_python(options)
