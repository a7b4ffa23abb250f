"""Random impulses in the simulators: the first changes a velocity by its size, nothing before it changes."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from flowmbpo.envs.config import PerturbationConfig, TaskConfig
from flowmbpo.envs.dmcontrol.pushes import pushable_velocities
from flowmbpo.envs.dmcontrol.simulator import DMControlSimulator
from flowmbpo.envs.make import make_env
from flowmbpo.envs.perturbation import draw_impulses
from flowmbpo.envs.seeding import episode_seed
from flowmbpo.envs.tasks import task_info

PUSH = PerturbationConfig(rate=0.1, magnitude=1.5, skew=-1.0)


def pair(name, workers=0, num_envs=2):
    plain = make_env(TaskConfig(name=name, num_envs=num_envs), workers=workers)
    pushed = make_env(TaskConfig(name=name, num_envs=num_envs, perturbation=PUSH), workers=workers)
    return plain, pushed


@pytest.mark.parametrize("name", ["walker-walk", "cartpole-swingup", "reacher-easy", "mujoco-ant", "mujoco-hopper"])
def test_nothing_differs_before_the_first_impulse_and_everything_after_it(name):
    plain, pushed = pair(name)
    assert plain.reset(5).equal(pushed.reset(5))
    length, axes = plain.spec.tasks[0].episode_length, 1
    first = [int(draw_impulses(PUSH, axes, length, episode_seed(5, i, 0)).change.nonzero()[0][0]) for i in range(2)]
    action = torch.zeros(2, plain.spec.action_dim)
    for step in range(max(first) + 1):
        a, b = plain.step(action), pushed.step(action)
        for index in range(2):
            assert bool(a.final_obs[index].equal(b.final_obs[index])) == (step < first[index])
    plain.close()
    pushed.close()


def test_a_push_on_the_walker_is_a_sudden_change_of_its_forward_speed():
    seed = episode_seed(0, 0, 0)
    simulator = DMControlSimulator("walker-walk", 2, perturbation=PUSH, episode_length=500)
    obs = np.zeros(24, dtype=np.float32)
    simulator.reset(seed, obs)
    first = int(draw_impulses(PUSH, 1, 500, seed).change.nonzero()[0][0])
    for _ in range(first):
        simulator.step(np.zeros(6, np.float32), obs)
    data = simulator._data
    before = float(data.qvel[1])
    simulator._push(simulator._impulses)
    assert data.qvel[1] == pytest.approx(before - 1.5)  # rootx is the second velocity, after rootz


@pytest.mark.parametrize(
    ("name", "joints"),
    [
        ("walker-run", ["rootx"]),
        ("cartpole-balance", ["slider"]),
        ("reacher-easy", ["shoulder", "wrist"]),
        ("fish-swim", ["root", "root"]),
        ("swimmer-swimmer6", ["rootx", "rooty"]),
    ],
)
def test_the_torso_is_pushed_where_it_is_free_and_the_joints_elsewhere(name, joints):
    model = DMControlSimulator(name, 2)._model
    assert [model.joint(int(model.dof_jntid[place])).name for place in pushable_velocities(model)] == joints


@pytest.mark.parametrize("name", ["walker-walk", "mujoco-ant"])
def test_a_pushed_episode_is_reproducible_and_restorable(name):
    config = TaskConfig(name=name, num_envs=2, perturbation=PUSH)
    first, second = make_env(config, workers=0), make_env(config, workers=0)
    assert first.spec.label == f"{name}+push_r0.1_m1.5_s-1"
    assert first.reset(1).equal(second.reset(1))
    generator = torch.Generator().manual_seed(0)
    actions = torch.rand(60, 2, task_info(name).action_dim, generator=generator) * 2 - 1
    for action in actions[:30]:
        assert first.step(action).obs.equal(second.step(action).obs)
    fresh = make_env(config, workers=0)
    fresh.load_state_dict(first.state_dict())
    for action in actions[30:]:
        assert first.step(action).obs.equal(fresh.step(action).obs)
    plain = make_env(TaskConfig(name=name, num_envs=2), workers=0)
    with pytest.raises(ValueError, match=rf"the saved environment is 2 x '{name}\+push"):
        plain.load_state_dict(first.state_dict())
    for env in (first, second, fresh, plain):
        env.close()
