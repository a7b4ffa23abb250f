"""The robots' numbers against hand evaluations, and the Ant's physics against closed forms."""

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

ANT = task_info("mujoco-ant")
SPRINGS_AT_REST = [0.0, 1.3, 0.0, -1.3, 0.0, -1.3, 0.0, 1.3]


def multiply(p, q):
    """Product of two quaternions wxyz."""
    (a, b), (u, v) = (p[0], p[1:]), (q[0], q[1:])
    return np.concatenate(([a * u - b @ v], a * v + u * b + np.cross(b, v)))


def rotate(q, vector):
    """`vector` turned by the unit quaternion wxyz `q`: q v q*."""
    return multiply(multiply(q, np.concatenate(([0.0], vector))), q * [1, -1, -1, -1])[1:]


def y_up(vector):
    """A vector of the z-up world, as a turn of -90 degrees about x leaves it."""
    return rotate(np.array([math.cos(math.pi / 4), -math.sin(math.pi / 4), 0, 0]), vector)


def observation_by_hand(qpos, qvel, action):
    """dflex's 37 entries in their order, one copy."""
    quaternion = qpos[3:7]
    turned = multiply(np.array([math.cos(math.pi / 4), -math.sin(math.pi / 4), 0, 0]), quaternion)
    to_target = np.array([10_000.0, 0.0]) - qpos[:2]
    heading = rotate(quaternion, np.array([1.0, 0, 0]))[:2] @ (to_target / np.linalg.norm(to_target))
    return np.concatenate(
        (
            [qpos[2]],
            turned[[1, 2, 3, 0]],
            y_up(qvel[:3]),
            y_up(rotate(quaternion, qvel[3:6])),
            qpos[7:],
            0.1 * qvel[6:],
            [rotate(quaternion, np.array([0, 0, 1.0]))[2]],
            [heading],
            action,
        )
    )


def reward_by_hand(obs):
    return obs[5] + 0.1 * obs[27] + obs[28] + obs[0] - 0.27


def random_states(count, seed=0):
    """Any orientation, anywhere: time, positions, velocities."""
    rng = np.random.default_rng(seed)
    states = np.concatenate((np.zeros((count, 1)), rng.normal(0, 2, (count, 29))), axis=1)
    states[:, 3] = rng.uniform(0.1, 2, count)  # height
    states[:, 4:8] /= np.linalg.norm(states[:, 4:8], axis=1, keepdims=True)
    return states


def placed(states, action=None):
    """A simulator whose copies are in `states`."""
    simulator = LocomotionSimulator(ANT, len(states), 1)
    saved = simulator.state_dict()
    saved["physics"] = torch.from_numpy(states.copy())
    if action is not None:
        saved["action"] = torch.from_numpy(action.copy())
    simulator.load_state_dict(saved)
    return simulator


def test_every_entry_of_the_observation_is_the_hand_evaluation():
    states = random_states(200)
    action = np.random.default_rng(1).uniform(-1, 1, (200, 8))
    obs = placed(states, action).observe().numpy()
    expected = np.stack([observation_by_hand(s[1:16], s[16:], a) for s, a in zip(states, action, strict=True)])
    np.testing.assert_allclose(obs, expected, rtol=3e-7, atol=3e-7)


def test_velocities_and_axes_are_those_that_mujoco_computes():
    model = load_model(mujoco, "ant.xml")
    data = mujoco.MjData(model)
    velocity = np.zeros(6)
    states = random_states(20, seed=2)
    for state, obs in zip(states, placed(states).observe().numpy().astype(np.float64), strict=True):
        data.qpos[:], data.qvel[:] = state[1:16], state[16:]
        mujoco.mj_forward(model, data)
        # Spin, then speed of the torso's centre, in the world's axes.
        mujoco.mj_objectVelocity(model, data, mujoco.mjtObj.mjOBJ_XBODY, model.body("torso").id, velocity, 0)
        spin_x, spin_y, spin_z, x, y, z = velocity
        np.testing.assert_allclose(obs[5:11], [x, z, -y, spin_x, spin_z, -spin_y], rtol=1e-6, atol=1e-6)
        axes = data.body("torso").xmat.reshape(3, 3)
        assert obs[27] == pytest.approx(axes[2, 2], abs=1e-6)
        assert obs[0] == pytest.approx(data.body("torso").xpos[2])


def test_rewards_are_of_the_observation_before_actions_are_free():
    states = random_states(100, seed=3)
    still, moved = placed(states), placed(states)
    before = still.observe().numpy().astype(np.float64)
    expected = [reward_by_hand(row) for row in before]
    actions = torch.rand(100, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    first = still.step(torch.zeros(100, 8)).reward
    np.testing.assert_allclose(first, expected, rtol=1e-6, atol=1e-6)
    assert moved.step(actions).reward.equal(first)
    after = moved.observe().numpy().astype(np.float64)
    np.testing.assert_allclose(moved.step(actions).reward, [reward_by_hand(row) for row in after], rtol=1e-6, atol=1e-6)


def test_an_episode_ends_where_the_torso_got_below_27_centimetres():
    states = np.zeros((100, 30))
    states[:, 3] = np.linspace(0.24, 0.3, 100)
    states[:, 5] = 1.0  # on its back: no leg holds the torso up
    states[:, 8:16] = SPRINGS_AT_REST
    outcome = placed(states).step(torch.zeros(100, 8))
    assert outcome.terminated.equal(outcome.obs[:, 0] < 0.27)
    assert 10 < int(outcome.terminated.sum()) < 90


def test_the_last_action_is_observed_zero_at_the_start():
    env = BatchVectorEnv(LocomotionSimulator(ANT, 3, 1))
    assert (env.reset(0)[:, 29:] == 0).all()
    action = torch.rand(3, 8, generator=torch.Generator().manual_seed(1)) * 2 - 1
    assert env.step(action).obs[:, 29:].equal(action)
    assert env.step(3 * torch.ones(3, 8)).obs[:, 29:].equal(torch.ones(3, 8))
    assert (env.reset(0)[:, 29:] == 0).all()
    env.close()


def test_starts_fill_the_stated_noise():
    simulator = LocomotionSimulator(ANT, 500, 1)
    simulator.start(range(500), [episode_seed(0, index, 0) for index in range(500)])
    state = simulator.state_dict()["physics"].numpy()
    rest = [0, 0, 0.75, *([0.0] * 4), 0, 1, 0, -1, 0, -1, 0, 1]
    offset = state[:, 1:16] - rest
    angle = 2 * np.arccos(np.clip(state[:, 4], -1, 1))
    spin = np.array([rotate(row[4:8], row[19:22]) for row in state])  # from the body's axes to the world's
    for values, bound in (
        (offset[:, :3], 0.1),
        (offset[:, 7:], 0.2),
        (state[:, 16:19] - np.cross(spin, state[:, 1:4]), 0.25),  # the twist about the world's origin
        (spin, 0.25),
        (state[:, 22:], 0.25),
        (angle, math.pi / 24),
    ):
        assert 0.95 * bound < np.abs(values).max() <= bound
    np.testing.assert_allclose(np.linalg.norm(state[:, 4:8], axis=1), 1, rtol=1e-14)
    assert (state[:, 0] == 0).all()


def test_a_step_is_a_sixtieth_second_of_free_fall():
    state = np.zeros((1, 30))
    state[0, 3], state[0, 4], state[0, 8:16] = 5.0, 1.0, SPRINGS_AT_REST
    simulator = placed(state)
    obs = simulator.step(torch.zeros(1, 8)).obs[0]
    # Four substeps of h: v = -4 g h, and z falls by (1 + 2 + 3 + 4) g h^2, whatever the masses.
    h = 1 / 240
    assert obs[6].item() == pytest.approx(-9.81 * 4 * h, rel=1e-6)
    assert obs[0].item() == pytest.approx(5 - 10 * 9.81 * h**2, rel=1e-6)
    assert simulator.state_dict()["physics"][0, 0].item() == pytest.approx(1 / 60)


def test_a_motor_turns_its_own_joint_by_its_sign():
    state = np.zeros((8, 30))
    state[:, 3], state[:, 4], state[:, 8:16] = 5.0, 1.0, SPRINGS_AT_REST
    speeds = placed(state).step(torch.eye(8)).obs[:, 19:27]
    assert (speeds.diagonal() > 0).all()
    assert speeds.abs().argmax(dim=1).tolist() == list(range(8))


def test_without_torque_it_stands_still_on_its_feet():
    env = BatchVectorEnv(LocomotionSimulator(ANT, 4, 1))
    env.reset(0)
    earned = torch.zeros(4)
    for _ in range(999):
        step = env.step(torch.zeros(4, 8))
        assert not step.done.any()
        earned += step.reward
    assert (step.obs[:, 0] > 0.55).all()
    assert (step.obs[:, 5:11].abs() < 0.05).all()
    assert ((earned > 1400) & (earned < 1480)).all()  # 999 x (0 + 0.1 + 1 + about 0.35)
    env.close()


def test_an_open_loop_trot_walks_forward_without_falling():
    env = BatchVectorEnv(LocomotionSimulator(ANT, 8, 1))
    env.reset(0)
    backwards, downwards = np.array([-1, -1, 1, 1]), np.array([1, -1, -1, 1])  # signs of the hips and ankles
    diagonal_pairs = np.array([0, 1, 0, 1]) * math.pi
    speed, steps = 0.0, 240
    for step in range(steps):
        phase = 2 * math.pi * 1.5 * step / 60 + diagonal_pairs
        gait = np.stack((backwards * np.sin(phase), -0.5 * downwards * np.sin(phase)), axis=1).ravel()
        result = env.step(torch.from_numpy(gait).float().expand(8, 8))
        assert not result.terminated.any()
        speed += result.final_obs[:, 5].mean().item() / steps
    assert speed > 0.5
    env.close()


HOPPER = task_info("mujoco-hopper")


def hopper_reward_by_hand(obs, action):
    """dflex's Hopper, one copy."""
    height = min(max(obs[0] + 0.45 - 0.15, -1.0), 0.3)
    if height < 0:
        height = -200 * height**2
    return obs[5] + height + 1 - obs[1] ** 2 / 0.524**2 - 0.1 * sum(a**2 for a in action)


def hopper_placed(positions, velocities):
    simulator = LocomotionSimulator(HOPPER, len(positions), 1)
    saved = simulator.state_dict()
    saved["physics"] = torch.from_numpy(np.concatenate((np.zeros((len(positions), 1)), positions, velocities), axis=1))
    simulator.load_state_dict(saved)
    return simulator


def hopper_random_states(count, seed):
    rng = np.random.default_rng(seed)
    positions = rng.uniform(-0.6, 0.6, (count, 6))
    return positions, rng.normal(0, 1, (count, 6))


def test_the_observation_is_all_but_the_forward_position():
    positions, velocities = hopper_random_states(50, 0)
    obs = hopper_placed(positions, velocities).observe().numpy()
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
    positions, velocities = hopper_random_states(200, 1)
    simulator = hopper_placed(positions, velocities)
    before = simulator.observe().numpy().astype(np.float64)
    actions = torch.rand(200, 3, generator=torch.Generator().manual_seed(0)) * 2 - 1
    rewards = simulator.step(actions).reward.numpy()
    expected = [
        hopper_reward_by_hand(obs, action) for obs, action in zip(before, actions.double().tolist(), strict=True)
    ]
    np.testing.assert_allclose(rewards, expected, rtol=1e-5, atol=1e-5)
    # Heights on both sides of the kink and beyond the cap were among them.
    assert (before[:, 0] < -0.3).any() and (before[:, 0] > 0.0).any()


def test_every_start_lies_above_the_ground():
    positions = np.zeros((2, 6))
    positions[:, 1] = (-0.05, 0.0)  # the lowest start and the standing height, at rest
    obs = hopper_placed(positions, np.zeros((2, 6))).step(torch.zeros(2, 3)).obs
    # One step of free fall: the ground would push up.
    assert obs[:, 6].tolist() == pytest.approx([-9.81 / 60] * 2, rel=1e-4)


def test_an_episode_ends_45_centimetres_below_the_start():
    positions, velocities = hopper_random_states(200, 2)
    outcome = hopper_placed(positions, velocities).step(torch.zeros(200, 3))
    assert outcome.terminated.equal(outcome.obs[:, 0] < -0.45)
    assert 5 < int(outcome.terminated.sum()) < 195


def test_hopper_starts_fill_the_stated_noise():
    simulator = LocomotionSimulator(HOPPER, 200, 1)
    simulator.start(range(200), [episode_seed(0, index, 0) for index in range(200)])
    state = simulator.state_dict()["physics"].numpy()[:, 1:]
    assert ((np.abs(state).max(axis=0) > 0.045) & (np.abs(state).max(axis=0) <= 0.05)).all()


def test_it_stands_at_first_and_falls_without_control():
    env = BatchVectorEnv(LocomotionSimulator(HOPPER, 8, 1))
    env.reset(0)
    ended = torch.zeros(8, dtype=torch.int64)
    for step in range(1, 301):
        outcome = env.step(torch.zeros(8, 3))
        ended[(ended == 0) & outcome.terminated] = step
    assert (ended > 15).all()  # a quarter of a second at the least
    env.close()


@pytest.mark.parametrize(("joint", "sign"), [(0, 1), (1, 1), (2, 1)])
def test_hopper_a_motor_turns_its_own_joint_by_its_sign(joint, sign):
    positions = np.zeros((1, 6))
    positions[0, 1] = 3.0  # in the air
    positions[0, 3:5] = -0.5  # off the limits
    action = torch.zeros(1, 3)
    action[0, joint] = sign
    speeds = hopper_placed(positions, np.zeros((1, 6))).step(action).obs[0, 8:11]
    assert speeds[joint] > 0
