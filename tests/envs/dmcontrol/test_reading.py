"""Fast tasks against dm_control's own observations and rewards, to the last bit.

The rewards of the eleven MT30 tasks that DMControl lacks, against a second computation from raw physics.
"""

from __future__ import annotations

import math
from itertools import islice
from typing import Any

import numpy as np
import pytest
from reference import mt30_rewards

from flowmbpo.envs.dmcontrol.simulator import DMControlSimulator
from flowmbpo.envs.dmcontrol.suite import READERS, load_suite_task
from flowmbpo.envs.episodes import episode_seed
from flowmbpo.envs.tasks import task_info

REPEAT = 2


def random_state(physics, rng) -> None:
    """Somewhere between the model's own pose and far from it, any speed, with its contacts."""
    physics.reset()
    spread = rng.choice([0.0, 1e-3, 0.1, 1.0])
    physics.data.qpos[:] += spread * rng.normal(size=physics.model.nq)
    physics.data.qvel[:] = rng.choice([0.0, 0.1, 3.0, 20.0]) * rng.normal(size=physics.model.nv)
    physics.data.ctrl[:] = rng.uniform(-1, 1, physics.model.nu)
    physics.forward()


def bring_together(name, physics, rng) -> None:
    """Put the target of a small-target task where chance hardly ever would: on and around its border."""
    data, model = physics.named.data, physics.named.model
    if name.startswith("reacher"):
        offset = rng.normal(size=2) * rng.choice([0.0, 0.01, 0.03, 0.1])
        model.geom_pos["target", :2] = data.geom_xpos["finger", :2] + offset
        physics.forward()
    if name.startswith("cup") and rng.uniform() < 0.5:
        offset = rng.uniform(-0.04, 0.04, 2)
        data.qpos[["ball_x", "ball_z"]] += data.site_xpos["target", ["x", "z"]] - data.xpos["ball", ["x", "z"]] + offset
        physics.forward()


@pytest.mark.parametrize("name", READERS)
def test_random_states_read_as_in_dm_control(name):
    environment = load_suite_task(name)
    physics, task = environment.physics, environment.task
    environment.reset()
    fast = READERS[name](physics.model.ptr, physics.data.ptr)
    obs = np.empty(task_info(name).obs_dim)
    rng = np.random.default_rng(0)
    rewards = []
    for _ in range(80):
        random_state(physics, rng)
        bring_together(name, physics, rng)
        np.concatenate(fast.observed(), out=obs, casting="same_kind")
        expected = np.concatenate([np.ravel(value) for value in task.get_observation(physics).values()])
        assert obs.tobytes() == expected.tobytes()
        assert fast.reward() == task.get_reward(physics)
        rewards.append(fast.reward())
    assert len(set(rewards)) > 1
    if name.startswith(("cup-catch", "reacher")):  # paid only in or near a small target
        assert 0.1 < np.count_nonzero(rewards) / len(rewards) < 0.9


# One task of each reader: the others differ from these in a constant of the reward, which the test above covers.
@pytest.mark.parametrize(
    "name",
    [
        "acrobot-swingup",
        "cartpole-swingup",
        "cartpole-three-poles",
        "cheetah-run",
        "cup-catch",
        "finger-turn-hard",
        "fish-swim",
        "hopper-stand",
        "pendulum-swingup",
        "reacher-three-hard",
        "walker-walk",
    ],
)
def test_fast_episodes_are_those_of_the_suite(name):
    task = task_info(name)
    simulators = [DMControlSimulator(name, REPEAT, read_fast=fast) for fast in (True, False)]
    obs = np.full((2, task.obs_dim), np.nan, np.float32)
    rng = np.random.default_rng(1)
    for episode in range(2):
        for simulator, row in zip(simulators, obs, strict=True):
            simulator.reset(episode_seed(5, 0, episode), row)
        assert obs[0].tobytes() == obs[1].tobytes()
        for _ in range(30):
            action = rng.uniform(-1, 1, task.action_dim).astype(np.float32)
            fast, suite = (simulator.step(action, row) for simulator, row in zip(simulators, obs, strict=True))
            assert obs[0].tobytes() == obs[1].tobytes()
            assert fast.reward == suite.reward
            assert fast.terminated == suite.terminated


TOLERANCE = 1e-9
COMMITTED = mt30_rewards.read()
REACHERS = tuple(mt30_rewards.TARGET_RADIUS)


def load(task: str) -> Any:
    """The product's task after one reset, which makes the changes that each episode makes to the model."""
    env = load_suite_task(task)
    env.reset()
    return env


def product_rewards(task: str) -> np.ndarray:
    """The product's reward in every fourth of the reference's states, [250]."""
    env = load(task)
    physics, values = env.physics, np.empty(mt30_rewards.NUM_STATES // 4)
    for index, (qpos, qvel, extra) in enumerate(islice(mt30_rewards.states(task), 0, None, 4)):
        with physics.reset_context():
            physics.data.qpos[:] = qpos
            physics.data.qvel[:] = qvel
            if task in REACHERS:
                physics.named.model.geom_pos["target", ["x", "y"]] = extra
        values[index] = env.task.get_reward(physics)
    return values


@pytest.mark.parametrize("task", mt30_rewards.TASKS)
def test_rewards_equal_the_second_implementation_from_raw_physics(task: str) -> None:
    np.testing.assert_allclose(product_rewards(task), COMMITTED[task][::4], rtol=0, atol=TOLERANCE)


@pytest.mark.slow
@pytest.mark.parametrize("task", mt30_rewards.TASKS)
def test_the_second_implementation_still_gives_the_committed_rewards(task: str) -> None:
    np.testing.assert_allclose(mt30_rewards.rewards(task), COMMITTED[task], rtol=0, atol=1e-12)


@pytest.mark.parametrize("task", REACHERS)
def test_a_reset_gives_the_reacher_its_target_radius(task: str) -> None:
    sizes = load(task).physics.named.model.geom_size
    assert sizes["target", 0] == mt30_rewards.TARGET_RADIUS[task]
    assert sizes["finger", 0] == mt30_rewards.FINGER_RADIUS


@pytest.mark.parametrize("task", REACHERS)
def test_the_three_link_reacher_is_the_specified_mechanism(task: str) -> None:
    theirs, ours = load(task).physics.model.ptr, mt30_rewards.load_model(task)
    assert theirs.opt.timestep == ours.opt.timestep
    assert theirs.opt.disableflags == ours.opt.disableflags
    moving = ("body_pos", "body_mass", "body_ipos", "body_inertia", "jnt_limited", "jnt_range", "jnt_axis")
    driving = ("dof_damping", "dof_armature", "actuator_gear", "actuator_ctrlrange", "actuator_trnid")
    for field in moving + driving:
        np.testing.assert_allclose(getattr(theirs, field), getattr(ours, field), rtol=0, atol=1e-12, err_msg=field)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((1.2, 1.2, math.inf, 0.6), 1.0),
        ((0.6, 1.2, math.inf, 0.6), 0.1),
        ((0.9, 1.2, math.inf, 0.6), 0.1**0.25),
        ((-6.0, -math.inf, -8.0, 4.0, 0.5, True), 0.75),
        ((0.0, -math.inf, -8.0, 4.0, 0.5, True), 0.0),
        ((-0.75, -0.5, 0.5, 0.5, 0.0, True), 0.5),
        ((0.75, -0.5, 0.5, 0.5, 0.0, True), 0.5),
        ((2.01, 0.6, 2.0, 0.0), 0.0),
    ],
)
def test_the_second_implementation_of_tolerance_has_its_hand_computed_values(
    arguments: tuple[float, ...], expected: float
) -> None:
    assert mt30_rewards.tolerance(*arguments) == pytest.approx(expected, abs=1e-15)


@pytest.mark.parametrize("task", mt30_rewards.TASKS)
def test_the_states_reach_high_and_low_rewards(task: str) -> None:
    rewards = COMMITTED[task]
    assert np.quantile(rewards, 0.9) >= 0.7
    assert np.quantile(rewards, 0.1) <= 0.3
