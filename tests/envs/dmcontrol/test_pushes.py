"""Random impulses in the simulators: the first changes a velocity by its size, nothing before it changes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from dm_control import suite

from flowmbpo.config.task import PerturbationConfig, TaskConfig
from flowmbpo.envs.dmcontrol.pushes import pushable_velocities
from flowmbpo.envs.dmcontrol.simulator import DMControlSimulator
from flowmbpo.envs.dmcontrol.suite import load_suite_task
from flowmbpo.envs.episodes import broken_numbers, episode_seed
from flowmbpo.envs.make import make_env
from flowmbpo.envs.mujoco import draw_impulses
from flowmbpo.envs.task_sets import MT30
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
    first = [int(draw_impulses(PUSH, axes, length, episode_seed(5, i, 0))[1].nonzero()[0][0]) for i in range(2)]
    action = torch.zeros(2, plain.spec.action_dim)
    for step in range(max(first) + 1):
        a, b = plain.step(action), pushed.step(action)
        for index in range(2):
            assert bool(a.final_obs[index].equal(b.final_obs[index])) == (step < first[index])
    plain.close()
    pushed.close()


def test_a_push_changes_the_walkers_forward_speed_at_once():
    seed = episode_seed(0, 0, 0)
    simulator = DMControlSimulator("walker-walk", 2, perturbation=PUSH, episode_length=500)
    obs = np.zeros(24, dtype=np.float32)
    simulator.reset(seed, obs)
    first = int(draw_impulses(PUSH, 1, 500, seed)[1].nonzero()[0][0])
    for _ in range(first):
        simulator.step(np.zeros(6, np.float32), obs)
    data = simulator._data
    before = float(data.qvel[1])
    simulator._push(*simulator._impulses)
    assert data.qvel[1] == pytest.approx(before - 1.5)  # rootx is the second velocity, after rootz


ARM = ["arm_root", "arm_shoulder", "arm_elbow", "arm_wrist", "thumb", "thumbtip", "finger", "fingertip"]
PUSHED = {
    "acrobot": ["shoulder", "elbow"],
    "ball_in_cup": ["cup_x"],  # not the ball
    "cartpole": ["slider"],
    "cheetah": ["rootx"],
    "dog": ["root", "root"],
    "finger": ["proximal", "distal"],  # not the spinner
    "fish": ["root", "root"],
    "hopper": ["rootx"],
    "humanoid": ["root", "root"],
    "humanoid_CMU": ["root", "root"],
    "lqr": ["joint_0"],
    "manipulator": ARM,  # neither ball nor peg
    "pendulum": ["hinge"],
    "point_mass": ["root_x", "root_y"],
    "quadruped": ["root", "root"],
    "reacher": ["shoulder", "wrist"],
    "stacker": ARM,  # no boxes
    "swimmer": ["rootx", "rooty"],
    "walker": ["rootx"],
}
"""Of each domain of the suite: the joints that an impulse may push."""
FIRST = {domain: (domain, task) for domain, task in reversed(suite.ALL_TASKS) if domain != "dog"}
QUICK = {*FIRST.values(), ("quadruped", "fetch"), ("manipulator", "insert_peg")}


@pytest.mark.parametrize(
    ("domain", "task"),
    [pytest.param(*task, marks=[] if task in QUICK else pytest.mark.slow) for task in suite.ALL_TASKS],
)
def test_a_free_torso_is_pushed_else_the_joints_never_props(domain, task):
    model = load_suite_task(f"{domain}-{task}").physics.model.ptr
    velocities, skewed = pushable_velocities(model)
    assert [model.joint(int(model.dof_jntid[place])).name for place in velocities] == PUSHED[domain]
    fixed = domain in ("acrobot", "finger", "manipulator", "pendulum", "reacher", "stacker")
    assert skewed == (len(PUSHED[domain]) if fixed else 1)
    if PUSHED[domain] == ["root", "root"]:
        assert velocities.tolist() == [0, 1]


def test_a_push_in_a_fluid_is_as_strong_as_outside():
    changes = []
    for pushed in (False, True):
        simulator = DMControlSimulator("fish-swim", 2, perturbation=PUSH, episode_length=500)
        obs = np.zeros(24, np.float32)
        simulator.reset(episode_seed(0, 0, 0), obs)
        simulator._model.opt.density = 0.0
        simulator._impulses = (np.array([1, 0]), np.array([-1.5 * pushed, 0.0]))
        speeds = []
        for _ in range(2):
            simulator.step(np.zeros(5, np.float32), obs)
            speeds.append(simulator._data.qvel[:3].copy())
        changes.append(speeds)
    np.testing.assert_allclose(np.subtract(changes[1], changes[0]), [[0, -1.5, 0]] * 2, atol=0.02)


def broken_steps(name: str) -> int:
    """How many steps of one episode of random actions break under impulses of the default size."""
    task = task_info(name)
    perturbation = PerturbationConfig(rate=0.1)
    simulator = DMControlSimulator(
        name, task.action_repeat, perturbation=perturbation, episode_length=task.episode_length
    )
    rng, obs = np.random.default_rng(0), np.zeros(task.obs_dim, np.float32)
    simulator.reset(episode_seed(0, 0, 0), obs)
    broken = 0
    for _ in range(task.episode_length):
        outcome = simulator.step(rng.uniform(-1, 1, task.action_dim).astype(np.float32), obs)
        broken += broken_numbers(obs, outcome.reward) is not None
    assert np.count_nonzero(simulator._impulses[1]) > 20
    return broken


def test_a_fish_survives_impulses_of_the_default_size():
    assert broken_steps("fish-swim") == 0


@pytest.mark.slow
@pytest.mark.parametrize("name", [*MT30, "fish-upright", "swimmer-swimmer6", "swimmer-swimmer15"])
def test_episodes_survive_impulses_of_the_default_size(name):
    assert broken_steps(name) == 0


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
