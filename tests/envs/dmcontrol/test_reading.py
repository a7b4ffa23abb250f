"""Fast tasks against dm_control's own observations and rewards, to the last bit."""

from __future__ import annotations

import numpy as np
import pytest

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
        fast.observe(obs)
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
