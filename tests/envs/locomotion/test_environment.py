"""Seeds, saved states, threads, divergence and pictures of the locomotion tasks."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import numpy as np
import pytest
import torch

from flowmbpo.config.task import TaskConfig
from flowmbpo.envs.batch import BatchVectorEnv
from flowmbpo.envs.locomotion.environment import LocomotionSimulator
from flowmbpo.envs.make import make_env
from flowmbpo.envs.tasks import task_info
from flowmbpo.errors import EnvironmentUnavailableError

NAMES = ("mujoco-ant", "mujoco-hopper")


def vector(name, num_envs=4, threads=1):
    return BatchVectorEnv(LocomotionSimulator(task_info(name), num_envs, threads))


def actions(env, steps, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return 2 * torch.rand(steps, env.num_envs, env.spec.action_dim, generator=generator) - 1


def follow(env, table):
    """What each step gave, one row per copy."""
    rows = []
    for action in table:
        step = env.step(action)
        flags = torch.stack((step.reward, step.terminated.float(), step.truncated.float()), dim=1)
        rows.append(torch.cat((step.obs, step.final_obs, flags), dim=1))
    return torch.stack(rows)


@pytest.mark.parametrize("name", NAMES)
def test_equal_seeds_give_equal_bits_over_500_steps(name):
    first, second = vector(name), vector(name)
    assert first.reset(3).equal(second.reset(3))
    table = actions(first, 500)
    # Interleaved: neither engine may notice the other.
    for start in range(0, 500, 50):
        assert follow(first, table[start : start + 50]).equal(follow(second, table[start : start + 50]))
    assert not first.reset(4).equal(first.reset(3))
    first.close()
    second.close()


@pytest.mark.parametrize("name", NAMES)
def test_results_do_not_depend_on_the_number_of_threads(name):
    runs = []
    for threads in (1, 2, 3):
        env = vector(name, num_envs=7, threads=threads)
        env.reset(0)
        runs.append(follow(env, actions(env, 120)))
        env.close()
    assert runs[1].equal(runs[0])
    assert runs[2].equal(runs[0])


@pytest.mark.parametrize("name", NAMES)
def test_a_copy_does_not_depend_on_how_many_there_are(name):
    many, few = vector(name, num_envs=33, threads=2), vector(name, num_envs=2)
    assert many.reset(1)[:2].equal(few.reset(1))
    table = actions(many, 150)
    assert follow(many, table)[:, :2].equal(follow(few, table[:, :2]))
    many.close()
    few.close()


@pytest.mark.parametrize("name", NAMES)
def test_a_saved_state_goes_on_bit_equally_for_200_steps(name, tmp_path):
    env, fresh = vector(name), vector(name, threads=2)
    env.reset(2)
    follow(env, actions(env, 60, seed=1))
    obs = env.step(actions(env, 1, seed=3)[0]).obs
    torch.save(env.state_dict(), tmp_path / "state.pt")
    table = actions(env, 200, seed=2)
    expected = follow(env, table)
    for target in (fresh, env):
        saved = torch.load(tmp_path / "state.pt", weights_only=True)
        assert target.load_state_dict(saved).equal(obs)
        assert follow(target, table).equal(expected)
    env.close()
    fresh.close()


@pytest.mark.parametrize("name", NAMES)
def test_a_saved_state_shares_no_memory_with_the_simulation(name):
    env = vector(name)
    env.reset(0)
    saved = env.state_dict()
    copy = {key: value.clone() for key, value in saved["simulator"].items()}
    follow(env, actions(env, 5))
    env.load_state_dict(saved)
    follow(env, actions(env, 5))
    assert all(saved["simulator"][key].equal(value) for key, value in copy.items())
    env.close()


def test_a_fall_ends_the_episode_and_the_next_one_stands():
    env = vector("mujoco-hopper")
    env.reset(0)
    falls = 0
    for action in actions(env, 200):
        step = env.step(action)
        assert step.obs[~step.done].equal(step.final_obs[~step.done])
        assert (step.final_obs[step.terminated, 0] < -0.45).all()
        assert (step.obs[step.terminated].abs() <= 0.05).all()  # the noise of a start
        falls += int(step.terminated.sum())
    assert falls > 4
    env.close()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("speed", [1e7, 1e12, float("nan")])
def test_a_diverged_environment_restarts_and_the_others_notice_nothing(name, speed, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    env, sound = vector(name), vector(name)
    env.reset(0)
    sound.reset(0)
    saved = env.state_dict()
    saved["simulator"]["physics"][1, -1] = speed
    env.load_state_dict(saved)
    table = actions(env, 20)
    step, expected = env.step(table[0]), sound.step(table[0])
    assert [fault.index for fault in step.faults] == [1]
    # The state before the step, to the last digit that is shown; nothing of MuJoCo's in the working directory.
    before = saved["simulator"]["physics"][1].numpy()
    positions = 1 + env.simulator._qpos.shape[1]
    shown = np.array2string(before[1:positions], precision=4, max_line_width=10_000)
    assert f"qpos {shown}, qvel " in step.faults[0].state
    assert list(tmp_path.iterdir()) == []
    assert step.obs.isfinite().all()
    others = [0, 2, 3]
    assert step.obs[others].equal(expected.obs[others])
    assert step.reward[others].equal(expected.reward[others])
    assert follow(env, table[1:])[:, others].equal(follow(sound, table[1:])[:, others])
    env.close()
    sound.close()


def test_a_copy_is_described_by_its_time_positions_and_velocities():
    env = vector("mujoco-hopper", num_envs=2)
    env.reset(0)
    env.step(torch.zeros(2, 3))
    physics = env.state_dict()["simulator"]["physics"][1].numpy()
    env.step(torch.zeros(2, 3))
    text = env.simulator.describe(1)
    assert text.startswith("before the step: time 0.017 s, qpos [")
    numbers = [float(number) for number in re.findall(r"-?\d+\.\d*(?:e[+-]?\d+)?", text.split("qpos")[1])]
    np.testing.assert_allclose(numbers, physics[1:], atol=5e-4)


def test_make_env_runs_them_and_closing_twice_is_safe():
    for name in NAMES:
        env = make_env(TaskConfig(name=name, num_envs=3))
        assert env.reset(0).shape == (3, env.spec.obs_dim)
        env.close()
        env.close()


def test_simulating_leaves_opengl_alone_whatever_the_environment_says():
    program = (
        "import os, sys; from flowmbpo.envs.locomotion.physics import import_mujoco; import_mujoco(); "
        "print(os.environ['MUJOCO_GL'], 'PYOPENGL_PLATFORM' in os.environ, "
        "sorted({'mujoco.egl', 'mujoco.osmesa', 'mujoco.glfw', 'OpenGL'} & set(sys.modules)))"
    )
    environment = {key: value for key, value in os.environ.items() if key != "PYOPENGL_PLATFORM"} | {"MUJOCO_GL": "egl"}
    result = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=120
    )
    assert result.stdout.split(maxsplit=2) == ["egl", "False", "[]\n"], result.stderr


@pytest.mark.parametrize("name", NAMES)
def test_pictures_show_the_copy_that_is_asked_for(name):
    env = vector(name, num_envs=2)
    env.reset(0)
    try:
        first = env.render(0)
    except EnvironmentUnavailableError as error:
        pytest.skip(f"no OpenGL here: {error}")
    assert first.shape == (240, 320, 3)
    assert first.dtype == np.uint8
    assert (env.render(1) != first).any()
    assert (env.render(0) == first).all()
    follow(env, actions(env, 10))
    assert (env.render(0) != first).any()
    env.close()


def test_no_opengl_is_an_error_that_names_what_to_install(monkeypatch):
    monkeypatch.setenv("MUJOCO_GL", "disabled")
    env = vector("mujoco-hopper", num_envs=1)
    env.reset(0)
    with pytest.raises(EnvironmentUnavailableError, match=r"'mujoco-hopper' cannot be drawn.*disabled: .*libosmesa6"):
        env.render()
    assert env.step(torch.zeros(1, 3)).obs.isfinite().all()
    env.close()
