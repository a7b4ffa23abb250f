"""The one-dimensional maps against their written derivatives."""

from __future__ import annotations

import math

import pytest
import torch

from flowmbpo.envs.tasks import task_info
from flowmbpo.envs.toy.maps import fold_map, inelastic_map, smooth_map
from flowmbpo.envs.toy.systems import toy_system

GRID = torch.linspace(-2.0, 2.0, 400, dtype=torch.float64)  # meets no corner


def slopes(follow, a=0.2):
    """dx'/dx and dx'/da on the grid."""
    x, action = GRID.clone().requires_grad_(), torch.full_like(GRID, a, requires_grad=True)
    return torch.autograd.grad(follow(x, action).sum(), (x, action))


def reward_slope(name, x, a):
    action = torch.tensor([[a]], dtype=torch.float64, requires_grad=True)
    state = torch.tensor([[x]], dtype=torch.float64)
    _, reward = toy_system(task_info(name)).transition(state, action, torch.empty(1, 0))
    return torch.autograd.grad(reward.sum(), action)[0].item()


@pytest.mark.parametrize(
    ("follow", "x", "a", "expected"),
    [
        (smooth_map, 0.4, 1.0, 0.8 + 0.2 * math.sin(3.0)),
        (inelastic_map, 0.1, -0.5, 0.04),
        (inelastic_map, 0.5, 1.0, 0.8),
        (fold_map, 0.4, 1.0, 0.0),
        (fold_map, 0.2, 0.5, 0.6),
        (fold_map, -0.8, 0.5, 0.6),
    ],
)
def test_values_are_the_hand_computed_ones(follow, x, a, expected):
    found = follow(torch.tensor(x, dtype=torch.float64), torch.tensor(a, dtype=torch.float64))
    assert found.item() == pytest.approx(expected)


@pytest.mark.parametrize(
    ("follow", "slope"),
    [
        (smooth_map, lambda s: 0.8 + 0.6 * torch.cos(3.0 * s)),
        (inelastic_map, lambda s: 0.8 * (s < 0.75).double()),
        (fold_map, lambda s: -4.0 * s / (1.0 + s * s).square()),
    ],
)
def test_derivatives_are_the_written_ones(follow, slope):
    by_x, by_a = slopes(follow)
    expected = slope(GRID + 0.6 * 0.2)
    torch.testing.assert_close(by_x, expected)
    torch.testing.assert_close(by_a, 0.6 * expected)


def test_only_the_smooth_map_is_a_diffeomorphism():
    smooth, wall, fold = (slopes(follow)[0] for follow in (smooth_map, inelastic_map, fold_map))
    assert 0.2 - 1e-12 <= smooth.min().item() < smooth.max().item() <= 1.4 + 1e-12
    assert wall.min().item() == 0.0
    assert fold.min().item() < 0.0 < fold.max().item()


@pytest.mark.parametrize(
    ("name", "x", "best"),
    # Where the map's argument is right: s = .375 at the wall, s = +-1/sqrt 3 on either side of the fold.
    [
        ("toy-map-inelastic", 0.6, -0.375),
        ("toy-map-fold", 0.3, (1 / math.sqrt(3) - 0.3) / 0.6),
        ("toy-map-fold", -0.3, (0.3 - 1 / math.sqrt(3)) / 0.6),
    ],
)
def test_the_rewards_slope_changes_its_sign_at_the_best_action(name, x, best):
    assert abs(best) < 1
    assert reward_slope(name, x, best - 0.05) > 0.01
    assert reward_slope(name, x, best) == pytest.approx(0.0, abs=1e-12)
    assert reward_slope(name, x, best + 0.05) < -0.01


def test_beyond_the_wall_the_reward_is_flat():
    assert reward_slope("toy-map-inelastic", 0.8, 0.2) == 0.0
    system = toy_system(task_info("toy-map-inelastic"))
    _, reward = system.transition(torch.tensor([[0.8], [0.8]]), torch.tensor([[0.2], [-0.7]]), torch.empty(2, 0))
    assert reward[1].item() > reward[0].item() + 0.05


@pytest.mark.parametrize("name", ["toy-map-smooth", "toy-map-inelastic", "toy-map-fold"])
def test_the_state_stays_bounded(name):
    system = toy_system(task_info(name))
    for action in (-1.0, 0.0, 1.0):
        state = torch.linspace(-1.0, 1.0, 101)[:, None]
        for _ in range(50):
            state, _ = system.transition(state, torch.full((101, 1), action), torch.empty(101, 0))
            assert state.abs().max().item() < 4.0
