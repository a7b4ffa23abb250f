"""The Control Suite wrapper against a plain dm_control loop."""

from __future__ import annotations

import math
import subprocess
import sys

import numpy as np
import pytest
import torch

from flowmbpo.config.task import TaskConfig
from flowmbpo.envs.dmcontrol.simulator import DMControlSimulator, action_scale
from flowmbpo.envs.dmcontrol.suite import load_suite_task
from flowmbpo.envs.episodes import episode_seed
from flowmbpo.envs.make import make_env
from flowmbpo.envs.mujoco import rendering_variables
from flowmbpo.envs.tasks import task_info
from flowmbpo.errors import EnvironmentFailure, EnvironmentUnavailableError


def flat(time_step) -> np.ndarray:
    return np.concatenate([np.ravel(value) for value in time_step.observation.values()]).astype(np.float32)


@pytest.mark.parametrize(
    ("name", "low", "high"),
    [
        ("walker-stand", -1.0, 1.0),
        ("cartpole-swingup", -1.0, 1.0),  # Runge-Kutta
        ("cup-catch", -1.0, 1.0),
        ("walker-run", -1.0, 1.0),  # ten physics steps in a control step
        ("finger-turn-easy", -1.0, 1.0),  # sensors, and a target that moves at every reset
        ("reacher-easy", -1.0, 1.0),  # its targets are part of the model
        ("quadruped-walk", None, None),  # asymmetric action range; read through dm_control
    ],
)
def test_episodes_are_those_of_a_plain_loop(name, low, high):
    task = task_info(name)
    plain = load_suite_task(name)
    env = make_env(TaskConfig(name=name), 2, workers=0)
    obs = env.reset(11)
    plain.task.random.seed(episode_seed(11, 1, 0).generate_state(8))
    assert np.array_equal(flat(plain.reset()), obs[1].numpy())
    rng = np.random.default_rng(0)
    spec = plain.action_spec()
    for _ in range(40):
        action = rng.uniform(-1, 1, (2, task.action_dim)).astype(np.float32)
        step = env.step(torch.from_numpy(action))
        control = action[1].astype(np.float64)
        if low is None:
            control = (spec.maximum + spec.minimum) / 2 + control * (spec.maximum - spec.minimum) / 2
        reward = 0.0
        for _ in range(2):
            time_step = plain.step(control)
            reward += time_step.reward
        assert np.array_equal(flat(time_step), step.obs[1].numpy())
        assert np.float32(reward) == step.reward[1].item()


def test_numpy_is_left_alone_by_what_the_quadruped_lacks():
    script = """
import numpy
before = set(vars(numpy))
from flowmbpo.envs.dmcontrol.suite import load_suite_task
load_suite_task("quadruped-walk").reset()
load_suite_task("quadruped-walk").reset()
print(sorted(name for name in set(vars(numpy)) - before if "in1d" in name))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_fresh_episode_keeps_nothing_of_the_last():
    simulator = DMControlSimulator("reacher-hard", 2)
    fresh, used = np.empty(6, np.float32), np.empty(6, np.float32)
    simulator.reset(episode_seed(0, 0, 1), fresh)
    for _ in range(20):
        simulator.step(np.ones(2, np.float32), used)
    assert not np.array_equal(fresh, used)
    simulator.reset(episode_seed(0, 0, 1), used)
    assert np.array_equal(fresh, used)


def test_action_range_is_mapped_onto_the_unit_box():
    assert action_scale(-np.ones(2), np.ones(2)) is None
    scale = action_scale(np.array([-1.0, 0.0]), np.array([1.1, 4.0]))
    assert scale is not None
    centre, half = scale
    for action, expected in ((-1.0, [-1.0, 0.0]), (0.0, [0.05, 2.0]), (1.0, [1.1, 4.0])):
        assert centre + action * half == pytest.approx(expected)


def test_unbounded_actions_are_refused():
    with pytest.raises(EnvironmentFailure, match="without bounds"):
        action_scale(np.array([-np.inf]), np.array([1.0]))


def test_diverging_physics_is_an_error_with_the_state():
    simulator = DMControlSimulator("cheetah-run", 2)
    obs = np.empty(17, np.float32)
    simulator.reset(episode_seed(0, 0, 0), obs)
    for _ in range(20):
        simulator.step(np.ones(6, np.float32), obs)
    data = simulator._physics.data
    data.qvel[0] = 1e12
    before = np.concatenate([data.qpos, data.qvel])
    shown = np.array2string(before, precision=4, max_line_width=10_000)
    time = f"{data.time:.3f} s"
    with pytest.raises(EnvironmentFailure, match=r"invalid \(mjWARN_BAD") as raised:
        simulator.step(np.zeros(6, np.float32), obs)
    expected = f"before the step: time {time}, positions and velocities {shown}"
    assert str(raised.value).endswith(expected)
    assert simulator.describe() == expected
    assert not np.array_equal(np.concatenate([data.qpos, data.qvel]), before), "MuJoCo has wiped it"


def test_before_a_step_the_description_is_the_start():
    simulator = DMControlSimulator("pendulum-swingup", 2)
    assert simulator.describe().startswith("before the step: time 0.000 s")
    obs = np.empty(3, np.float32)
    simulator.reset(episode_seed(0, 0, 0), obs)
    simulator.step(np.ones(1, np.float32), obs)
    simulator.reset(episode_seed(0, 0, 1), obs)
    angle = simulator._physics.data.qpos
    shown = np.array2string(np.concatenate([angle, [0.0]]), precision=4)
    assert simulator.describe() == f"before the step: time 0.000 s, positions and velocities {shown}"


def test_a_replay_that_gives_other_observations_is_refused():
    env = make_env(TaskConfig(name="pendulum-swingup"), 2, workers=0)
    env.reset(0)
    env.step(torch.zeros(2, 1))
    saved = env.state_dict()
    saved["obs"][1, 0] = torch.nextafter(saved["obs"][1, 0], torch.tensor(math.inf))
    with pytest.raises(EnvironmentFailure, match=r"environments \[1\] does not reproduce"):
        env.load_state_dict(saved)
    with pytest.raises(ValueError, match="reset"):
        env.step(torch.zeros(2, 1))


def test_frames_come_from_the_state_that_was_reached():
    env = make_env(TaskConfig(name="pendulum-swingup"), 2, workers=0)
    env.reset(0)
    try:
        first = env.render(1)
    except EnvironmentUnavailableError as error:
        pytest.skip(f"no OpenGL here: {error}")
    assert first.shape == (240, 320, 3)
    assert first.dtype == np.uint8
    for _ in range(10):
        env.step(torch.ones(2, 1))
    moved = env.render(1)
    assert (moved != first).any()
    assert env.cpu_seconds() > 0
    env.reset(0)
    assert (env.render(1) == first).all()
    env.close()


def test_no_opengl_is_an_error_that_names_what_to_install(monkeypatch):
    monkeypatch.setenv("MUJOCO_GL", "disabled")
    env = make_env(TaskConfig(name="pendulum-swingup"), 1, workers=0)
    env.reset(0)
    with pytest.raises(EnvironmentUnavailableError, match=r"disabled: .*libegl1.*libosmesa6.*MUJOCO_GL=osmesa"):
        env.render()
    assert env.step(torch.zeros(1, 1)).obs.isfinite().all()


@pytest.mark.parametrize(
    ("chosen", "display", "tried"),
    [("osmesa", "", ["osmesa"]), ("", "", ["egl", "osmesa"]), ("", ":0", ["glfw", "egl", "osmesa"])],
)
def test_backends_are_tried_in_order_unless_one_is_chosen(monkeypatch, chosen, display, tried):
    monkeypatch.setenv("MUJOCO_GL", chosen)
    monkeypatch.setenv("DISPLAY", display)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    assert [variables["MUJOCO_GL"] for variables in rendering_variables()] == tried
