"""Either goal is best, and the mean of the two ways is bad."""

from __future__ import annotations

import math

import pytest
import torch

from flowmbpo.envs.tasks import task_info
from flowmbpo.envs.toy.systems import toy_system

TASK = task_info("toy-two-goals")
SYSTEM = toy_system(TASK)


def returns(target: torch.Tensor, start: torch.Tensor) -> torch.Tensor:
    """The episode's return of walking straight to `target` [B, 2]."""
    state, total = start, torch.zeros(len(start))
    for _ in range(TASK.episode_length):
        state, reward = SYSTEM.transition(state, ((target - state) / 0.15).clamp(-1, 1), torch.empty(len(start), 0))
        total = total + reward
    return total


def test_step_is_the_hand_computed_one():
    reached, reward = SYSTEM.transition(
        torch.tensor([[0.85, 0.0]]).double(), torch.tensor([[1.0, 2.0]]).double(), torch.empty(1, 0)
    )
    assert reached[0].tolist() == pytest.approx([1.0, 0.3])
    near, far = math.exp(-0.09 / 0.125), math.exp(-4.09 / 0.125)
    assert reward.item() == pytest.approx(near + far - 0.5 * math.exp(-1.09 / 0.32))


def test_the_point_stays_on_the_board():
    reached, _ = SYSTEM.transition(torch.tensor([[1.95, -1.95]]), torch.tensor([[1.0, -1.0]]), torch.empty(1, 0))
    assert reached[0].tolist() == [2.0, -2.0]


def test_the_task_is_its_own_mirror_image():
    rng = torch.Generator().manual_seed(0)
    state, action = (2 * torch.rand(50, 2, generator=rng) - 1 for _ in range(2))
    mirror = torch.tensor([-1.0, 1.0])
    reached, reward = SYSTEM.transition(state, action, torch.empty(50, 0))
    other, same = SYSTEM.transition(state * mirror, action * mirror, torch.empty(50, 0))
    assert other.equal(reached * mirror)
    torch.testing.assert_close(same, reward)


def test_both_goals_are_equally_good_and_their_mean_is_bad():
    targets = torch.tensor([[-1.0, 0.0], [1.0, 0.0], [0.0, 0.0]])
    left, right, middle = returns(targets, torch.zeros(3, 2)).tolist()
    assert left == pytest.approx(right)
    assert left == pytest.approx(19.10, abs=0.01)
    assert middle == pytest.approx(-12.5, abs=0.1)


def test_the_goals_are_the_only_two_optima_among_targets():
    grid = torch.linspace(-1.5, 1.5, 31)
    found = returns(torch.stack((grid, torch.zeros(31)), dim=-1), torch.zeros(31, 2))
    peaks = [float(grid[i]) for i in range(1, 30) if found[i] > found[i - 1] and found[i] > found[i + 1]]
    assert peaks == pytest.approx([-1.0, 1.0])
    aside = returns(torch.tensor([[0.0, y] for y in (-1.0, 1.0)]), torch.zeros(2, 2))
    assert (aside < 0).all()
