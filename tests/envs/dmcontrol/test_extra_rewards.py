"""The eleven MT30 tasks that DMControl lacks, against rewards computed a second time from raw physics."""

from __future__ import annotations

import math
from itertools import islice
from typing import Any

import numpy as np
import pytest
from reference import mt30_rewards

from flowmbpo.envs.dmcontrol.suite import load_suite_task

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
