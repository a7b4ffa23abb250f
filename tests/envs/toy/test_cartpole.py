"""The pendulum and the cart-pole, plain, pushed and hidden, against values worked out by hand."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from flowmbpo.envs.batch import BatchVectorEnv
from flowmbpo.envs.tasks import task_info
from flowmbpo.envs.toy.cartpole import PushedCartPole
from flowmbpo.envs.toy.pendulum import PushedPendulum
from flowmbpo.envs.toy.system import ToyBatch, impulse
from flowmbpo.envs.toy.systems import toy_system

QUIET = torch.empty(1, 0, dtype=torch.float64)
NAMES = ["toy-pendulum-swingup", "toy-cartpole-swingup"]


def system(name, repeat=None):
    task = task_info(name)
    return toy_system(task if repeat is None else dataclasses.replace(task, action_repeat=repeat))


def one_step(toy, state, action):
    state, action = torch.tensor([state], dtype=torch.float64), torch.tensor([[action]], dtype=torch.float64)
    after, reward = toy.transition(state, action, QUIET)
    return after[0].tolist(), reward.item()


def test_pendulum_step_is_the_hand_computed_one():
    # Upright and still, a = 1/2: w = 3 * .05, th = .15 * .05.
    after, reward = one_step(system(NAMES[0], repeat=1), [0.0, 0.0], 0.5)
    assert after == pytest.approx([0.0075, 0.15])
    assert reward == pytest.approx(0.9 * 0.9999718753 * math.exp(-0.001125) + 0.1 * 0.75, abs=1e-9)
    # Level and still, a = -1: w = (15 - 6) * .05.
    after, reward = one_step(system(NAMES[0], repeat=1), [math.pi / 2, 0.0], -1.0)
    assert after == pytest.approx([math.pi / 2 + 0.0225, 0.45])
    upright = (1 - math.sin(0.0225)) / 2
    assert reward == pytest.approx(0.9 * upright**2 * math.exp(-0.05 * 0.45**2))


def test_pendulum_speed_is_limited():
    after, _ = one_step(system(NAMES[0], repeat=1), [math.pi / 2, 7.9], 1.0)
    assert after == pytest.approx([math.pi / 2 + 0.4, 8.0])


def test_cartpole_step_is_the_closed_form():
    # Balanced pole, full force: the cart's acceleration is 4 F / (4 M + m), the pole's -3/(4 l) of it.
    acceleration = 40 / 4.1
    angular = -1.5 * acceleration
    after, reward = one_step(system(NAMES[1], repeat=1), [0.0, 0.0, 0.0, 0.0], 1.0)
    v, w = 0.01 * acceleration, 0.01 * angular
    assert after == pytest.approx([0.01 * v, 0.01 * w, v, w])
    upright = (math.cos(0.01 * w) + 1) / 2
    centred = (1 + math.exp(-2.3 * (0.005 * v) ** 2)) / 2
    slow = (1 + math.exp(-2.3 * (w / 5) ** 2)) / 2
    assert reward == pytest.approx(upright * centred * slow * 0.8)


def test_cartpole_falls_as_a_rod_on_a_free_cart():
    # Level and still: gravity alone, 3 g / (4 l), the cart is not pushed.
    after, _ = one_step(system(NAMES[1], repeat=1), [0.0, math.pi / 2, 0.0, 0.0], 0.0)
    w = 0.01 * 0.75 * 9.81 / 0.5
    assert after == pytest.approx([0.0, math.pi / 2 + 0.01 * w, 0.0, w], abs=1e-12)


def test_cartpole_keeps_its_energy_without_force():
    toy = system(NAMES[1], repeat=1)
    state = torch.tensor([[0.0, 2.0, 0.3, -1.0]], dtype=torch.float64)

    def energy(state):
        _, angle, v, w = state[0].tolist()
        pole_v, pole_u = v + 0.5 * w * math.cos(angle), -0.5 * w * math.sin(angle)
        spin = 0.1 * 0.5**2 / 3  # a rod of half-length l about its centre
        return 0.5 * v**2 + 0.05 * (pole_v**2 + pole_u**2) + 0.5 * spin * w**2 + 0.1 * 9.81 * 0.5 * math.cos(angle)

    before = energy(state)
    for _ in range(100):
        state, _ = toy.transition(state, torch.zeros(1, 1).double(), QUIET)
    assert energy(state) == pytest.approx(before, abs=0.01)


@pytest.mark.parametrize("side", [-1.0, 1.0])
def test_the_end_of_the_track_stops_the_cart(side):
    after, _ = one_step(system(NAMES[1], repeat=1), [side * 1.79, math.pi, side * 3.0, 0.0], 0.0)
    assert after[0] == side * 1.8
    assert after[2] == 0.0
    away, _ = one_step(system(NAMES[1], repeat=1), after, -side)
    assert abs(away[0]) < 1.8
    assert away[2] * side < 0


@pytest.mark.parametrize("name", NAMES)
def test_an_agent_step_sums_its_physics_steps(name):
    task, single = task_info(name), system(name, repeat=1)
    width = 2 if "pendulum" in name else 4
    state = torch.linspace(-0.9, 1.1, width, dtype=torch.float64)[None]
    action = torch.tensor([[0.3]], dtype=torch.float64)
    after, reward = toy_system(task).transition(state, action, QUIET)
    total = 0.0
    for _ in range(task.action_repeat):
        state, part = single.transition(state, action, QUIET)
        total += part.item()
    torch.testing.assert_close(after, state)
    assert reward.item() == pytest.approx(total)


@pytest.mark.parametrize("name", NAMES)
def test_observation_holds_the_angle_as_cosine_and_sine(name):
    if "pendulum" in name:
        obs = system(name).observe(torch.tensor([[math.pi / 6, 2.0]]))
        expected = [math.sqrt(3) / 2, 0.5, 0.5]
    else:
        obs = system(name).observe(torch.tensor([[0.1, math.pi / 6, 2.0, 3.0]]))
        expected = [0.1, math.sqrt(3) / 2, 0.5, 2.0, 3.0]
    assert obs[0].tolist() == pytest.approx(expected)


@pytest.mark.parametrize(
    ("name", "random", "expected"),
    # Means over 4000 episodes of an independent numpy version of the same equations.
    [(NAMES[0], True, 41.0), (NAMES[0], False, 50.2), (NAMES[1], True, 57.2), (NAMES[1], False, 0.013)],
)
def test_untrained_returns_are_those_of_the_equations(name, random, expected):
    env = BatchVectorEnv(ToyBatch(system(name), 256))
    env.reset(0)
    rng = torch.Generator().manual_seed(0)
    total = torch.zeros(256)
    for _ in range(env.spec.tasks[0].episode_length):
        action = 2 * torch.rand(256, 1, generator=rng) - 1 if random else torch.zeros(256, 1)
        total += env.step(action).reward
    error = total.std().item() / 16
    assert total.mean().item() == pytest.approx(expected, abs=4 * error)


def test_starts_are_spread_as_described():
    pendulum = BatchVectorEnv(ToyBatch(system(NAMES[0]), 1000))
    obs = pendulum.reset(1)
    angle, speed = torch.atan2(obs[:, 1], obs[:, 0]), 4 * obs[:, 2]
    assert angle.abs().mean().item() == pytest.approx(math.pi / 2, abs=0.15)
    assert speed.abs().max().item() <= 1
    assert speed.abs().mean().item() == pytest.approx(0.5, abs=0.05)
    obs = BatchVectorEnv(ToyBatch(system(NAMES[1]), 1000)).reset(1)
    assert obs[:, 1].max().item() < -0.99
    assert obs[:, [0, 2, 3, 4]].std(dim=0).tolist() == pytest.approx([0.01] * 4, rel=0.1)


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
