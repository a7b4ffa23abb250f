"""The tasks that the Control Suite does not ship: rewards by hand, geometry, episode starts and ends."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Mapping
from functools import cache
from typing import Any

import numpy as np
import pytest

from flowmbpo.envs.dmcontrol.simulator import DMControlSimulator
from flowmbpo.envs.dmcontrol.suite import EXTRA_TASKS, load_suite_task
from flowmbpo.envs.episodes import episode_seed
from flowmbpo.envs.tasks import task_info

NAMES = list(EXTRA_TASKS)
REACHERS = ["reacher-three-easy", "reacher-three-hard"]

# Control step in seconds, then the observation's entries in order (TD-MPC2).
LAYOUTS = {
    "walker-walk-backwards": (0.025, {"orientations": 14, "height": 1, "velocity": 9}),
    "walker-run-backwards": (0.025, {"orientations": 14, "height": 1, "velocity": 9}),
    "cheetah-run-backwards": (0.01, {"position": 8, "velocity": 9}),
    "cheetah-run-front": (0.01, {"position": 8, "velocity": 9}),
    "cheetah-run-back": (0.01, {"position": 8, "velocity": 9}),
    "cheetah-jump": (0.01, {"position": 8, "velocity": 9}),
    "hopper-hop-backwards": (0.02, {"position": 6, "velocity": 7, "touch": 2}),
    "reacher-three-easy": (0.02, {"position": 3, "to_target": 2, "velocity": 3}),
    "reacher-three-hard": (0.02, {"position": 3, "to_target": 2, "velocity": 3}),
    "cup-spin": (0.02, {"position": 4, "velocity": 4}),
    "pendulum-spin": (0.02, {"orientation": 2, "velocity": 1}),
}


@cache
def environment_of(name: str) -> Any:
    return load_suite_task(name)


def seeded(name: str, seed: int) -> Any:
    environment = environment_of(name)
    environment.task.random.seed(seed)
    return environment.reset()


def reward_at(name: str, qpos: Mapping[str, float], qvel: Mapping[str, float] | None = None) -> float:
    """Reward with these joints set and every other one at its zero."""
    environment = environment_of(name)
    physics = environment.physics
    with physics.reset_context():
        for joint, value in qpos.items():
            physics.named.data.qpos[joint] = value
        for joint, value in (qvel or {}).items():
            physics.named.data.qvel[joint] = value
    return environment.task.get_reward(physics)


def flat(time_step: Any) -> np.ndarray:
    return np.concatenate([np.ravel(value) for value in time_step.observation.values()]).astype(np.float32)


@pytest.mark.parametrize("name", NAMES)
def test_episode_has_a_thousand_steps_and_does_not_terminate(name):
    # To its end where that is cheap or the environment is no task of the suite; `test_tasks` has all, marked slow.
    length = 1000 if name.startswith(("pendulum", "reacher")) else 50
    control_step, layout = LAYOUTS[name]
    environment = environment_of(name)
    time_step = seeded(name, 0)
    assert {key: np.size(value) for key, value in time_step.observation.items()} == layout
    assert list(time_step.observation) == list(layout)
    assert environment.control_timestep() == pytest.approx(control_step)
    rng = np.random.default_rng(0)
    for step in range(1, length + 1):
        time_step = environment.step(rng.uniform(-1, 1, environment.action_spec().shape))
        assert 0 <= time_step.reward <= 1
        assert time_step.last() == (step == 1000)
    assert time_step.discount == 1.0  # a time limit, no termination
    assert environment.physics.time() == pytest.approx(length * control_step)


@pytest.mark.parametrize("name", NAMES)
def test_simulator_steps_it_as_a_plain_loop_does(name):
    task = task_info(name)
    simulator, plain = DMControlSimulator(task.name, 2), load_suite_task(task.name)
    assert (simulator.obs_dim, simulator.action_dim) == (task.obs_dim, task.action_dim)
    spec = plain.action_spec()
    assert (spec.minimum == -1).all() and (spec.maximum == 1).all()
    obs = np.empty(task.obs_dim, np.float32)
    simulator.reset(episode_seed(3, 0, 0), obs)
    plain.task.random.seed(episode_seed(3, 0, 0).generate_state(8))
    assert np.array_equal(obs, flat(plain.reset()))
    rng = np.random.default_rng(1)
    for _ in range(20):
        action = rng.uniform(-1, 1, task.action_dim).astype(np.float32)
        outcome = simulator.step(action, obs)
        first, second = (plain.step(action.astype(np.float64)) for _ in range(2))
        assert np.array_equal(obs, flat(second))
        assert outcome.reward == first.reward + second.reward
        assert not outcome.terminated


@pytest.mark.parametrize("name", NAMES)
def test_equal_seeds_start_equal_episodes(name):
    first, again, other = flat(seeded(name, 5)), flat(seeded(name, 5)), flat(seeded(name, 6))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    fresh = load_suite_task(name)
    fresh.task.random.seed(5)
    assert np.array_equal(first, flat(fresh.reset()))


@pytest.mark.parametrize("name", NAMES)
def test_reward_depends_on_the_physics_state_alone(name):
    environment, fresh = environment_of(name), load_suite_task(name)
    seeded(name, 7)
    physics = environment.physics
    if name in REACHERS:  # the target stands in the model
        fresh.physics.named.model.geom_pos["target"] = physics.named.model.geom_pos["target"]
    rng = np.random.default_rng(2)
    rewards = []
    for _ in range(10):
        state = rng.uniform(-1, 1, physics.get_state().size)
        values = []
        for each in (environment, fresh):
            with each.physics.reset_context():
                each.physics.set_state(state)
            values.append(each.task.get_reward(each.physics))
        assert values[0] == values[1] == environment.task.get_reward(physics)
        rewards.append(values[0])
    assert all(isinstance(reward, float) and 0 <= reward <= 1 for reward in rewards)


@pytest.mark.parametrize(
    ("speed", "share"),
    # share = 1 at the target speed, falling linearly to .5 half of it short
    [(-9.0, 1.0), (-1.0, 1.0), (-0.75, 0.75), (-0.5, 0.5), (0.0, 0.0), (2.0, 0.0)],
)
def test_walker_is_paid_for_walking_backwards(speed, share):
    reward = reward_at("walker-walk-backwards", {}, {"rootx": speed})  # upright at 1.3 m
    assert reward == pytest.approx((5 * share + 1) / 6)


@pytest.mark.parametrize(("speed", "share"), [(-8.0, 1.0), (-6.0, 0.75), (-4.0, 0.5), (-1.0, 0.125), (8.0, 0.0)])
def test_walker_runs_backwards_at_eight_metres_per_second(speed, share):
    reward = reward_at("walker-run-backwards", {}, {"rootx": speed})
    assert reward == pytest.approx((5 * share + 1) / 6)


@pytest.mark.parametrize(
    ("joints", "stand"),
    [
        ({"rootz": -0.1}, 1.0),  # at 1.2 m
        ({"rootz": -0.7}, (3 * 0.1 + 1) / 4),  # at .6 m, a margin below
        ({"rooty": math.pi / 2}, (3 + 0.5) / 4),  # lying in the air
        ({"rooty": math.pi}, 3 / 4),  # upside down
        ({"rootz": -0.4, "rooty": math.pi}, 3 * 0.1**0.25 / 4),  # at .9 m, half a margin below
    ],
)
@pytest.mark.parametrize("name", ["walker-walk-backwards", "walker-run-backwards"])
def test_walker_is_paid_for_standing(name, joints, stand):
    assert reward_at(name, joints, {"rootx": -8.0}) == pytest.approx(stand)
    assert reward_at(name, joints) == pytest.approx(stand / 6)


@pytest.mark.parametrize(("speed", "reward"), [(-9.0, 1.0), (-8.0, 1.0), (-4.0, 0.5), (0.0, 0.0), (10.0, 0.0)])
def test_cheetah_is_paid_for_running_backwards(speed, reward):
    assert reward_at("cheetah-run-backwards", {}, {"rootx": speed}) == pytest.approx(reward)


# With every joint at 0 the torso is at .7 m + rootz, the back foot .39 m and the front foot .42 m below it.
@pytest.mark.parametrize(
    ("name", "torso", "up"),
    [
        ("cheetah-run-front", 1.59, 1.0),  # back foot at 1.2 m
        ("cheetah-run-front", 0.99, (3 * 0.1 + 2 * 0.1 ** (0.35**2)) / 5),  # back foot at .6 m
        ("cheetah-run-back", 1.62, 1.0),  # front foot at 1.2 m
        ("cheetah-run-back", 1.59, (3 * 0.1 ** (0.05**2) + 2) / 5),  # front foot at 1.17 m
    ],
)
@pytest.mark.parametrize(("speed", "share"), [(7.0, 1.0), (3.0, 0.5), (0.0, 0.0), (-6.0, 0.0)])
def test_cheetah_is_paid_for_running_with_the_other_foot_lifted(name, torso, up, speed, share):
    reward = reward_at(name, {"rootz": torso - 0.7}, {"rootx": speed})
    assert reward == pytest.approx(up * (5 * share + 1) / 6)


def test_cheetah_on_its_front_foot_lifts_the_back_one():
    # Nose down by 30 degrees: the back foot's lever (-.62, -.39) brings it up, the front one's (.49, -.42) down.
    pitch = math.radians(30)
    sin, cos = math.sin(pitch), math.cos(pitch)
    levers = {"cheetah-run-front": (-0.62, -0.39), "cheetah-run-back": (0.49, -0.42)}
    for name, (x, z) in levers.items():
        foot = 1.0 - sin * x + cos * z
        up = (3 * 0.1 ** (((1.2 - foot) / 0.6) ** 2) + 2 * 0.1 ** (1 / 9)) / 5
        assert reward_at(name, {"rootz": 0.3, "rooty": pitch}) == pytest.approx(up / 6)


@pytest.mark.parametrize(("speed", "still"), [(0.0, 1.0), (-0.5, 1.0), (0.75, 0.5), (-0.875, 0.25), (1.0, 0.0)])
def test_cheetah_is_paid_for_jumping_in_place(speed, still):
    # Torso at 1.395 m: the mean height of torso and back foot is 1.2 m, that of torso and front foot 1.185 m.
    up = (1 + 0.1 ** (0.025**2)) / 2
    reward = reward_at("cheetah-jump", {"rootz": 0.695}, {"rootx": speed})
    assert reward == pytest.approx((5 * up + still) / 6)


@pytest.mark.parametrize(("speed", "reward"), [(-3.0, 1.0), (-1.0, 1.0), (-0.75, 0.75), (-0.5, 0.5), (0.0, 0.0)])
def test_hopper_is_paid_for_hopping_backwards(speed, reward):
    assert reward_at("hopper-hop-backwards", {}, {"rootx": speed}) == pytest.approx(reward)


@pytest.mark.parametrize(
    ("joints", "stands"),
    [
        # The foot's centre is (.045, -.65) m from the hip; the torso stands .979 m above it on a straight leg.
        # .329 + .65 cos(hip) + .045 sin(hip): .615 m at -60 degrees, .563 m at -65 degrees.
        ({"hip": math.radians(-60)}, 1.0),
        ({"hip": math.radians(-65)}, 0.0),
        ({"rooty": math.pi}, 0.0),
        ({"rootz": -0.9}, 1.0),  # the height is measured from the foot
    ],
)
def test_hopper_is_paid_only_while_it_stands(joints, stands):
    assert reward_at("hopper-hop-backwards", joints, {"rootx": -2.0}) == stands


@pytest.mark.parametrize(
    ("omega", "reward"),
    [(9.0, 1.0), (-20.0, 1.0), (6.75, 0.75), (-4.5, 0.5), (1.8, 0.2), (0.0, 0.0)],
)
def test_pendulum_is_paid_for_spinning_either_way(omega, reward):
    assert reward_at("pendulum-spin", {"hinge": 0.3}, {"hinge": omega}) == pytest.approx(reward)


# With the joints at 0 the ball is at (0, .2) m, the target at (0, .55) m.
@pytest.mark.parametrize(
    ("joints", "velocity", "reward"),
    [
        ({"ball_z": -0.15}, (0.0, 0.0), 1 / 3),  # .5 m below the target
        ({"ball_z": -0.15}, (3.6, -4.8), 1.0),  # at 6 m/s
        ({"ball_z": -0.15}, (3.0, 0.0), (1 + 2 * 0.5) / 3),
        ({"ball_z": 0.1}, (0.0, 4.5), (0.5 + 2 * 0.75) / 3),  # .25 m below
        ({"ball_x": 0.3, "ball_z": -0.05}, (0.0, 0.0), 1 / 3),  # (.3, .4) m from it
        ({"cup_x": -0.3, "cup_z": 0.05}, (0.0, -6.0), 1.0),  # the same, the cup moved
        ({"ball_z": 0.35}, (0.0, 6.0), 0.0),  # in the target
        ({"ball_z": 0.35, "ball_x": 0.0249}, (0.0, 6.0), 0.0),
        ({"ball_z": 0.35, "ball_x": 0.025 + 1e-6}, (0.0, 6.0), (0.05 + 2) / 3),  # its edge has left
    ],
)
def test_ball_is_paid_for_being_far_and_fast(joints, velocity, reward):
    found = reward_at("cup-spin", joints, {"ball_x": velocity[0], "ball_z": velocity[1]})
    assert found == pytest.approx(reward, abs=1e-5)


def test_cups_own_speed_earns_nothing():
    assert reward_at("cup-spin", {"ball_z": -0.15}, {"cup_x": 6.0, "cup_z": 6.0}) == pytest.approx(1 / 3)


def test_ball_starts_in_the_target_in_nine_episodes_of_ten():
    physics = environment_of("cup-spin").physics
    in_target = []
    for seed in range(150):
        seeded("cup-spin", seed)
        assert physics.data.ncon == 0
        assert abs(physics.named.data.qpos["ball_x"][0]) <= 0.2
        assert 0.2 <= physics.named.data.qpos["ball_z"][0] <= 0.5
        in_target.append(bool(physics.in_target()))
        if np.random.RandomState(seed).uniform() >= 0.1:
            assert in_target[-1]
    # .9, and of the rest the target's share of the free positions, some 2%
    assert np.mean(in_target) == pytest.approx(0.902, abs=0.06)


@pytest.mark.parametrize(("name", "radii"), [("reacher-three-easy", 0.06), ("reacher-three-hard", 0.025)])
def test_reacher_is_paid_where_finger_and_target_touch(name, radii):
    model = environment_of(name).physics.named.model
    for distance, reward in ((0.0, 1.0), (radii - 1e-6, 1.0), (radii + 1e-6, 0.0)):
        for direction in (0.0, 2.0):
            model.geom_pos["target", "x"] = 0.27 + distance * math.cos(direction)  # a straight arm's finger is at .27
            model.geom_pos["target", "y"] = distance * math.sin(direction)
            assert reward_at(name, {}) == reward


@pytest.mark.parametrize(("name", "radius"), [("reacher-three-easy", 0.05), ("reacher-three-hard", 0.015)])
def test_reachers_target_has_its_size_before_the_first_episode(name, radius):
    assert load_suite_task(name).physics.named.model.geom_size["target", 0] == radius


@pytest.mark.parametrize("name", REACHERS)
def test_reacher_has_three_equal_links(name):
    environment = environment_of(name)
    physics = environment.physics
    bends = (0.4, -1.1, 0.9)
    with physics.reset_context():
        physics.data.qpos[:] = bends
    angles = np.cumsum(bends)
    expected = 0.09 * np.array([np.cos(angles).sum(), np.sin(angles).sum()])
    np.testing.assert_allclose(physics.named.data.geom_xpos["finger", :2], expected, atol=1e-12)
    observation = environment.task.get_observation(physics)
    to_target = physics.named.data.geom_xpos["target", :2] - expected
    np.testing.assert_allclose(observation["to_target"], to_target, atol=1e-12)
    assert observation["position"] == pytest.approx(bends)


def test_reacher_has_the_published_links_joints_and_motors():
    model = environment_of("reacher-three-easy").physics.model
    named = environment_of("reacher-three-easy").physics.named.model
    lengths = {link: 2 * named.geom_size[link, 1] for link in ("arm0", "arm1", "hand")}  # half-length in the model
    assert lengths == pytest.approx({"arm0": 0.09, "arm1": 0.09, "hand": 0.1})
    assert [model.id2name(joint, "joint") for joint in range(model.njnt)] == ["shoulder0", "shoulder1", "wrist"]
    assert model.jnt_limited.tolist() == [0, 1, 1]
    limits = np.radians([[-80.0, 80.0]] * 2)
    np.testing.assert_allclose(model.jnt_range[1:], limits)
    assert model.nu == 3
    assert model.actuator_trnid[:, 0].tolist() == [0, 1, 2]
    assert model.actuator_ctrlrange.tolist() == [[-1.0, 1.0]] * 3


def test_reachers_links_are_as_heavy_as_the_suites():
    # What the three-link arm shares with the suite's: radius and density of the links, damping, gear, finger.
    three, two = environment_of("reacher-three-easy").physics, environment_of("reacher-easy").physics
    for body in ("hand", "finger"):
        assert three.named.model.body_mass[body] == two.named.model.body_mass[body]
    assert three.named.model.geom_size["arm0", 0] == two.named.model.geom_size["arm", 0]
    assert (three.model.dof_damping == two.model.dof_damping[0]).all()
    assert (three.model.actuator_gear[:, 0] == two.model.actuator_gear[0, 0]).all()
    assert three.model.opt.timestep == two.model.opt.timestep
    assert three.model.opt.integrator == two.model.opt.integrator
    assert three.model.opt.disableflags == two.model.opt.disableflags


@pytest.mark.parametrize("name", REACHERS)
def test_reacher_starts_within_its_joint_ranges_at_random_targets(name):
    physics = environment_of(name).physics
    positions, radii = [], []
    for seed in range(300):
        seeded(name, seed)
        positions.append(physics.data.qpos.copy())
        radii.append(np.linalg.norm(physics.named.model.geom_pos["target", :2]))
    low, high = np.min(positions, axis=0), np.max(positions, axis=0)
    bound = np.array([math.pi, math.radians(80), math.radians(80)])
    assert (low >= -bound).all() and (high <= bound).all()
    assert (low < -0.95 * bound).all() and (high > 0.95 * bound).all()
    assert 0.05 <= min(radii) < 0.06 and 0.19 < max(radii) <= 0.2


def test_extra_tasks_import_no_torch():
    program = (
        "import sys; from flowmbpo.envs.dmcontrol.suite import load_suite_task; "
        "load_suite_task('reacher-three-hard'); print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
