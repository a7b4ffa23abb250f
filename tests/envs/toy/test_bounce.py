"""Free fall, restitution and contact time of the bouncing ball."""

from __future__ import annotations

import math

import pytest
import torch

from flowmbpo.envs.tasks import task_info
from flowmbpo.envs.toy.bounce import Bounce
from flowmbpo.envs.toy.systems import toy_system

NAMES = {"toy-bounce-soft": 400.0, "toy-bounce-stiff": 40_000.0}


def moved(system, state, action=0.0, steps=1):
    """The states visited [T, 2]."""
    state, visited = torch.tensor([state], dtype=torch.float64), []
    for _ in range(steps):
        state, _ = system.transition(state, torch.tensor([[action]], dtype=torch.float64), torch.empty(1, 0))
        visited.append(state[0])
    return torch.stack(visited)


@pytest.mark.parametrize("name", NAMES)
def test_flight_is_the_closed_form(name):
    system = toy_system(task_info(name))
    assert system.stiffness == NAMES[name]
    n, gravity = system.substeps, 4.0 * 0.5 - 9.81
    height, speed = moved(system, [1.0, 0.7], action=0.5)[0].tolist()
    assert speed == pytest.approx(0.7 + 0.05 * gravity)
    assert height == pytest.approx(1.0 + 0.05 * 0.7 + gravity * 0.05**2 * (n + 1) / (2 * n))


def test_one_contact_step_is_the_hand_computed_one():
    system = Bounce(task_info("toy-bounce-soft"), stiffness=16.0)  # one substep: .05 * 4 = .2
    assert system.substeps == 1
    height, speed = moved(system, [-0.5, -1.0])[0].tolist()
    expected = -1.0 + 0.05 * (-9.81 + 16 * 0.5 + 2 * 0.07 * 4 * 1.0)
    assert speed == pytest.approx(expected)
    assert height == pytest.approx(-0.5 + 0.05 * expected)


def test_the_floor_never_pulls():
    system = Bounce(task_info("toy-bounce-soft"), stiffness=16.0)
    # Leaving fast: damper -.56 * 5 outweighs spring 16 * .01, so gravity acts alone.
    assert moved(system, [-0.01, 5.0])[0, 1].item() == pytest.approx(5.0 - 0.05 * 9.81)


def test_reward_is_highest_at_one_metre():
    system = toy_system(task_info("toy-bounce-soft"))
    heights = torch.linspace(0.5, 1.5, 11, dtype=torch.float64)
    state = torch.stack((heights, torch.zeros(11, dtype=torch.float64)), dim=-1)
    reached, reward = system.transition(state, torch.zeros(11, 1, dtype=torch.float64), torch.empty(11, 0))
    expected = torch.exp(-((reached[:, 0] - 1.0) / 0.3).square())
    torch.testing.assert_close(reward, expected)


@pytest.mark.parametrize("stiffness", [400.0, 4_000.0, 40_000.0, 4e6])
def test_a_fast_bounce_keeps_the_same_speed_at_any_stiffness(stiffness):
    system = Bounce(task_info("toy-bounce-soft"), stiffness)
    path = moved(system, [1e-6, -100.0], steps=12)  # so fast that gravity hardly counts
    rising = path[(path[:, 0] > 0) & (path[:, 1] > 0)]
    z = 0.07
    # Schwager and Poeschel 2007: the spring-damper lets go where its force would turn to a pull.
    restitution = math.exp(-z / math.sqrt(1 - z * z) * math.acos(2 * z * z - 1))
    assert restitution == pytest.approx(0.81, abs=0.002)
    at_contact = rising[0, 1].item() + 9.81 * 0.05
    assert at_contact / 100.0 == pytest.approx(restitution, abs=0.02)


@pytest.mark.parametrize("stiffness", [400.0, 40_000.0])
def test_contact_lasts_half_an_oscillation(stiffness):
    system = Bounce(task_info("toy-bounce-soft"), stiffness)
    expected = math.pi / math.sqrt(stiffness)
    # In contact at the agent step k exactly when k steps last less than the contact does.
    path = moved(system, [1e-6, -100.0], steps=10)
    inside = int((path[:, 0] < 0).sum())
    assert inside == math.floor(expected / 0.05)


@pytest.mark.parametrize("name", NAMES)
def test_without_thrust_every_apex_is_lower(name):
    path = moved(toy_system(task_info(name)), [1.0, 0.0], steps=100)
    height, speed = path.unbind(dim=-1)
    energy = (9.81 * height + 0.5 * speed.square())[height > 0]
    assert energy.max().item() <= 9.81 + 1e-9
    assert energy[-1].item() < 0.2 * 9.81
    assert height.min().item() > -0.3


def test_full_thrust_cannot_hover():
    path = moved(toy_system(task_info("toy-bounce-stiff")), [1.0, 0.0], action=1.0, steps=20)
    assert path[:5, 0].diff().max().item() < 0.0
    assert path[:, 1].max().item() > 1.0  # it bounced
