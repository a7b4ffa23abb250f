"""Real rewards to learning rewards and back."""

import pytest
import torch

from flowmbpo.models.reward_normalizer import RewardNormalizer

REWARDS = torch.tensor([[1.0, -3.0], [5.0, 1.0]])  # mean 1, mean square 9, variance 8


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        ("none", [2.0, 0.0]),
        ("scale", [2.0 / 3.0, 0.0]),
        ("standardize", [1.0 / 8.0**0.5, -1.0 / 8.0**0.5]),
    ],
)
def test_each_mode_on_hand_computed_statistics(mode, expected):
    normalizer = RewardNormalizer(mode)
    normalizer.update(REWARDS)
    torch.testing.assert_close(normalizer(torch.tensor([2.0, 0.0])), torch.tensor(expected))


@pytest.mark.parametrize("mode", ["none", "scale", "standardize"])
def test_inverse_undoes_it(mode):
    normalizer = RewardNormalizer(mode)
    normalizer.update(REWARDS)
    torch.testing.assert_close(normalizer.inverse(normalizer(REWARDS)), REWARDS)


def test_scaling_keeps_a_terminated_state_s_zero_and_large_rewards_whole():
    normalizer = RewardNormalizer("scale")
    normalizer.update(torch.full((100,), 2.0))
    torch.testing.assert_close(normalizer(torch.tensor([0.0, 200.0])), torch.tensor([0.0, 100.0]))


@pytest.mark.parametrize("mode", ["none", "scale", "standardize"])
def test_before_any_reward_nothing_is_changed(mode):
    torch.testing.assert_close(RewardNormalizer(mode)(REWARDS), REWARDS)
