"""Pushed and hidden pendulum and cart-pole beside the plain ones."""

from __future__ import annotations

import pytest
import torch

from flowmbpo.envs.tasks import task_info
from flowmbpo.envs.toy.cartpole import PushedCartPole
from flowmbpo.envs.toy.pendulum import PushedPendulum
from flowmbpo.envs.toy.system import impulse
from flowmbpo.envs.toy.systems import toy_system

KINDS = {"pendulum": (2, 1, 2.0), "cartpole": (4, 3, 1.5)}
"""State width, index of the angular velocity, size of a push."""


@pytest.mark.parametrize(("skew", "positive", "negative"), [(0.5, 30, 10), (0.0, 20, 20), (-1.0, 0, 40), (1.0, 40, 0)])
def test_pushes_come_at_their_rate_and_skew(skew, positive, negative):
    u = (torch.arange(1000, dtype=torch.float64) + 0.5) / 1000
    found = impulse(u, rate=0.04, size=3.0, skew=skew)
    assert [int((found == value).sum()) for value in (3.0, -3.0, 0.0)] == [positive, negative, 960]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("u", "sign"), [(0.0, 1.0), (0.029, 1.0), (0.031, -1.0), (0.039, -1.0), (0.041, 0.0), (0.9, 0.0)]
)
def test_a_push_changes_the_angular_velocity_before_the_physics(kind, u, sign):
    width, index, size = KINDS[kind]
    state = torch.linspace(-0.5, 0.6, 3 * width).reshape(3, width)
    action = torch.tensor([[0.3], [-0.4], [1.0]])
    pushed, reward = toy_system(task_info(f"toy-{kind}-push")).transition(state, action, torch.full((3, 1), u))
    state = state.clone()
    state[:, index] += sign * size
    expected, plain = toy_system(task_info(f"toy-{kind}-swingup")).transition(state, action, torch.empty(3, 0))
    torch.testing.assert_close(pushed, expected)
    torch.testing.assert_close(reward, plain)


@pytest.mark.parametrize("system", [PushedPendulum, PushedCartPole])
def test_rate_size_and_skew_are_the_classs_own(system):
    class Battered(system):
        rate, size, skew = 1.0, 0.25, -1.0

    task = task_info("toy-pendulum-push" if system is PushedPendulum else "toy-cartpole-push")
    state, action = torch.zeros(1, system.state_dim), torch.zeros(1, 1)
    found, _ = Battered(task).transition(state, action, torch.full((1, 1), 0.99))
    calm, _ = system(task).transition(state, action, torch.full((1, 1), 0.99))
    assert calm.abs().max().item() == 0.0
    assert found[0, 1].item() < 0.0  # the angle followed the push


@pytest.mark.parametrize(("kind", "seen"), [("pendulum", [0, 1]), ("cartpole", [0, 1, 2])])
def test_hidden_variants_show_the_positions_alone(kind, seen):
    plain, hidden = (toy_system(task_info(f"toy-{kind}-{name}")) for name in ("swingup", "hidden"))
    state = torch.linspace(-0.8, 0.9, 3 * plain.state_dim).reshape(3, -1)
    assert hidden.observe(state).equal(plain.observe(state)[:, seen])
    faster = state.clone()
    faster[:, plain.state_dim // 2 :] += 1.0
    assert hidden.observe(faster).equal(hidden.observe(state))
    for found, expected in zip(
        hidden.transition(state, torch.ones(3, 1), torch.empty(3, 0)),
        plain.transition(state, torch.ones(3, 1), torch.empty(3, 0)),
        strict=True,
    ):
        assert found.equal(expected)
