"""The Hopper's numbers against hand evaluations from positions and velocities."""

from __future__ import annotations

import math

import mujoco
import numpy as np
import pytest
import torch

from flowmbpo.envs.batch import BatchVectorEnv
from flowmbpo.envs.episodes import episode_seed
from flowmbpo.envs.locomotion.environment import LocomotionSimulator
from flowmbpo.envs.locomotion.physics import load_model
from flowmbpo.envs.tasks import task_info

TASK = task_info("mujoco-hopper")


def reward_by_hand(obs, action):
    """dflex's Hopper, one copy."""
    height = min(max(obs[0] + 0.45 - 0.15, -1.0), 0.3)
    if height < 0:
        height = -200 * height**2
    return obs[5] + height + 1 - obs[1] ** 2 / 0.524**2 - 0.1 * sum(a**2 for a in action)


def placed(positions, velocities):
    simulator = LocomotionSimulator(TASK, len(positions), 1)
    saved = simulator.state_dict()
    saved["physics"] = torch.from_numpy(np.concatenate((np.zeros((len(positions), 1)), positions, velocities), axis=1))
    simulator.load_state_dict(saved)
    return simulator


def random_states(count, seed):
    rng = np.random.default_rng(seed)
    positions = rng.uniform(-0.6, 0.6, (count, 6))
    return positions, rng.normal(0, 1, (count, 6))


def test_the_observation_is_all_but_the_forward_position():
    positions, velocities = random_states(50, 0)
    obs = placed(positions, velocities).observe().numpy()
    assert np.array_equal(obs, np.concatenate((positions[:, 1:], velocities), axis=1).astype(np.float32))


def test_forward_height_and_lean_have_the_stated_signs():
    model = load_model(mujoco, "hopper.xml")
    data = mujoco.MjData(model)
    data.qpos[:3] = 0.3, 0.2, 0.4
    data.qvel[:3] = 1.5, -0.5, 0.7
    mujoco.mj_forward(model, data)
    torso = data.body("torso")
    np.testing.assert_allclose(torso.xpos, [0.3, 0, 1.22 + 0.2], atol=1e-12)
    # The torso's long axis tips towards +x.
    np.testing.assert_allclose(torso.xmat.reshape(3, 3)[:, 2], [math.sin(0.4), 0, math.cos(0.4)], atol=1e-12)
    velocity = np.zeros(6)
    mujoco.mj_objectVelocity(model, data, mujoco.mjtObj.mjOBJ_XBODY, model.body("torso").id, velocity, 0)
    np.testing.assert_allclose(velocity, [0, 0.7, 0, 1.5, 0, -0.5], atol=1e-12)


def test_rewards_are_of_the_observation_before_and_the_action():
    positions, velocities = random_states(200, 1)
    simulator = placed(positions, velocities)
    before = simulator.observe().numpy().astype(np.float64)
    actions = torch.rand(200, 3, generator=torch.Generator().manual_seed(0)) * 2 - 1
    rewards = simulator.step(actions).reward.numpy()
    expected = [reward_by_hand(obs, action) for obs, action in zip(before, actions.double().tolist(), strict=True)]
    np.testing.assert_allclose(rewards, expected, rtol=1e-5, atol=1e-5)
    # Heights on both sides of the kink and beyond the cap were among them.
    assert (before[:, 0] < -0.3).any() and (before[:, 0] > 0.0).any()


def test_every_start_lies_above_the_ground():
    positions = np.zeros((2, 6))
    positions[:, 1] = (-0.05, 0.0)  # the lowest start and the standing height, at rest
    obs = placed(positions, np.zeros((2, 6))).step(torch.zeros(2, 3)).obs
    # One step of free fall: the ground would push up.
    assert obs[:, 6].tolist() == pytest.approx([-9.81 / 60] * 2, rel=1e-4)


def test_an_episode_ends_45_centimetres_below_the_start():
    positions, velocities = random_states(200, 2)
    outcome = placed(positions, velocities).step(torch.zeros(200, 3))
    assert outcome.terminated.equal(outcome.obs[:, 0] < -0.45)
    assert 5 < int(outcome.terminated.sum()) < 195


def test_starts_fill_the_stated_noise():
    simulator = LocomotionSimulator(TASK, 200, 1)
    simulator.start(range(200), [episode_seed(0, index, 0) for index in range(200)])
    state = simulator.state_dict()["physics"].numpy()[:, 1:]
    assert ((np.abs(state).max(axis=0) > 0.045) & (np.abs(state).max(axis=0) <= 0.05)).all()


def test_it_stands_at_first_and_falls_without_control():
    env = BatchVectorEnv(LocomotionSimulator(TASK, 8, 1))
    env.reset(0)
    ended = torch.zeros(8, dtype=torch.int64)
    for step in range(1, 301):
        outcome = env.step(torch.zeros(8, 3))
        ended[(ended == 0) & outcome.terminated] = step
    assert (ended > 15).all()  # a quarter of a second at the least
    env.close()


@pytest.mark.parametrize(("joint", "sign"), [(0, 1), (1, 1), (2, 1)])
def test_a_motor_turns_its_own_joint_by_its_sign(joint, sign):
    positions = np.zeros((1, 6))
    positions[0, 1] = 3.0  # in the air
    positions[0, 3:5] = -0.5  # off the limits
    action = torch.zeros(1, 3)
    action[0, joint] = sign
    speeds = placed(positions, np.zeros((1, 6))).step(action).obs[0, 8:11]
    assert speeds[joint] > 0
