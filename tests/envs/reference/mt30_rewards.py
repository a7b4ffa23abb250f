"""Rewards of the eleven MT30 tasks that DMControl does not ship, a second time and from raw MuJoCo states.

Written from the tasks' specification alone: it shares no code with the environments, uses no dm_control class or
function, and reads of that package only the XML models. `mt30_rewards.npz` beside this file holds the reward of each
state of `states`: `rewards` float64 [11, 1000] and `tasks` [11], the names of its rows. To write it again:

    python tests/envs/reference/mt30_rewards.py

The states of task number k (its place in `TASKS`) come from `numpy.random.default_rng([20261122, k])`. For each state
in turn it draws qpos, then qvel, then `extra`, by the rule of `_draw_body`, `_draw_cup`, `_draw_pendulum` or
`_draw_reacher`. Units are metres, radians and seconds.
"""

from __future__ import annotations

import functools
import importlib.resources
import math
from collections.abc import Callable, Iterator
from pathlib import Path

import mujoco
import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
State = tuple[Array, Array, Array]

SEED = 20261122
NUM_STATES = 1000
FILE = Path(__file__).with_name("mt30_rewards.npz")
INF = math.inf
REACHER_LINK = 0.09  # m, three times
TARGET_RADIUS = {"reacher-three-easy": 0.05, "reacher-three-hard": 0.015}  # m
FINGER_RADIUS = 0.01  # m

MODELS = {
    "walker-walk-backwards": "walker.xml",
    "walker-run-backwards": "walker.xml",
    "cheetah-run-backwards": "cheetah.xml",
    "cheetah-run-front": "cheetah.xml",
    "cheetah-run-back": "cheetah.xml",
    "cheetah-jump": "cheetah.xml",
    "hopper-hop-backwards": "hopper.xml",
    "reacher-three-easy": "reacher_three.xml",
    "reacher-three-hard": "reacher_three.xml",
    "cup-spin": "ball_in_cup.xml",
    "pendulum-spin": "pendulum.xml",
}
TASKS = tuple(MODELS)  # in the order of their MT30 ids, 19 to 29

# Bounds of the unlimited root joints, in the model's joint order: positions, then velocities.
_WALKER_POSE = ((-1.0, 0.4), (-1.0, 1.0), (-math.pi, math.pi))  # rootz, rootx, rooty: torso at 0.3 to 1.7 m
_CHEETAH_POSE = ((-1.0, 1.0), (-0.6, 1.3), (-math.pi, math.pi))  # rootx, rootz, rooty: torso at 0.1 to 2 m
_HOPPER_POSE = ((-1.0, 1.0), (-0.5, 0.5), (-math.pi, math.pi))  # rootx, rootz, rooty
ROOT_BOUNDS = {
    "walker-walk-backwards": (_WALKER_POSE, ((-1.0, 1.0), (-2.5, 1.0), (-2.0, 2.0))),
    "walker-run-backwards": (_WALKER_POSE, ((-1.0, 1.0), (-14.0, 4.0), (-2.0, 2.0))),
    "cheetah-run-backwards": (_CHEETAH_POSE, ((-13.0, 4.0), (-1.0, 1.0), (-3.0, 3.0))),
    "cheetah-run-front": (_CHEETAH_POSE, ((-4.0, 10.0), (-1.0, 1.0), (-3.0, 3.0))),
    "cheetah-run-back": (_CHEETAH_POSE, ((-4.0, 10.0), (-1.0, 1.0), (-3.0, 3.0))),
    "cheetah-jump": (_CHEETAH_POSE, ((-1.5, 1.5), (-1.0, 1.0), (-3.0, 3.0))),
    "hopper-hop-backwards": (_HOPPER_POSE, ((-2.5, 1.0), (-1.0, 1.0), (-2.0, 2.0))),
}


@functools.cache
def load_model(task: str) -> mujoco.MjModel:
    """The task's MuJoCo model: the suite's own file, or this folder's for the three-link reacher."""
    name = MODELS[task]
    if name == "reacher_three.xml":
        return mujoco.MjModel.from_xml_path(str(Path(__file__).with_name(name)))
    with importlib.resources.as_file(importlib.resources.files("dm_control") / "suite") as folder:
        return mujoco.MjModel.from_xml_path(str(folder / name))


def tolerance(
    x: float, lower: float, upper: float, margin: float, at_margin: float = 0.1, linear: bool = False
) -> float:
    """1 in [lower, upper]; r margins outside it at_margin^(r^2), or max(0, 1 - (1 - at_margin) r) where linear.

    A margin of 0 leaves 0 everywhere outside.
    """
    outside = max(lower - x, x - upper, 0.0)
    if outside == 0.0:
        return 1.0
    if margin == 0.0:
        return 0.0
    r = outside / margin
    return max(0.0, 1.0 - (1.0 - at_margin) * r) if linear else at_margin ** (r * r)


def _height(data: mujoco.MjData, body: str) -> float:
    """World z of a body's frame, m."""
    return float(data.body(body).xpos[2])


def _forward_speed(model: mujoco.MjModel, data: mujoco.MjData) -> float:
    """World x velocity of the centre of mass of the torso and all that hangs on it, m/s."""
    mujoco.mj_subtreeVel(model, data)
    return float(data.subtree_linvel[model.body("torso").id, 0])


def _walk_backwards(model: mujoco.MjModel, data: mujoco.MjData, target: Array, *, speed: float) -> float:
    upright = (1.0 + float(data.body("torso").xmat[8])) / 2.0  # xmat[8]: torso z axis along world z
    stand = (3.0 * tolerance(_height(data, "torso"), 1.2, INF, 0.6) + upright) / 4.0
    move = tolerance(_forward_speed(model, data), -INF, -speed, speed / 2.0, 0.5, linear=True)
    return stand * (5.0 * move + 1.0) / 6.0


def _cheetah_backwards(model: mujoco.MjModel, data: mujoco.MjData, target: Array) -> float:
    return tolerance(_forward_speed(model, data), -INF, -8.0, 8.0, 0.0, linear=True)


def _cheetah_one_foot(model: mujoco.MjModel, data: mujoco.MjData, target: Array, *, lifted: str) -> float:
    foot = tolerance(_height(data, lifted), 1.2, INF, 0.6)
    torso = tolerance(_height(data, "torso"), 1.2, INF, 0.6)
    move = tolerance(_forward_speed(model, data), 6.0, INF, 6.0, 0.0, linear=True)
    return (3.0 * foot + 2.0 * torso) / 5.0 * (5.0 * move + 1.0) / 6.0


def _cheetah_jump(model: mujoco.MjModel, data: mujoco.MjData, target: Array) -> float:
    still = tolerance(_forward_speed(model, data), -0.5, 0.5, 0.5, 0.0, linear=True)
    heights = [(_height(data, "torso") + _height(data, foot)) / 2.0 for foot in ("bfoot", "ffoot")]
    return sum((5.0 * tolerance(height, 1.2, INF, 0.6) + still) / 6.0 for height in heights) / 2.0


def _hop_backwards(model: mujoco.MjModel, data: mujoco.MjData, target: Array) -> float:
    # The suite's hopper measures its height between the two centres of mass, not between the body frames.
    height = float(data.body("torso").xipos[2] - data.body("foot").xipos[2])
    move = tolerance(_forward_speed(model, data), -INF, -1.0, 0.5, 0.5, linear=True)
    return tolerance(height, 0.6, 2.0, 0.0) * move


def _reach(model: mujoco.MjModel, data: mujoco.MjData, target: Array, *, radius: float) -> float:
    x, y, _ = data.geom("finger").xpos
    distance = math.hypot(float(target[0] - x), float(target[1] - y))
    return tolerance(distance, 0.0, radius + float(model.geom("finger").size[0]), 0.0)


def _cup_spin(model: mujoco.MjModel, data: mujoco.MjData, target: Array) -> float:
    dx, _, dz = (float(value) for value in data.site("target").xpos - data.body("ball").xpos)
    half_x, _, half_z = (float(value) for value in model.site("target").size - model.geom("ball").size[0])
    if abs(dx) < half_x and abs(dz) < half_z:
        return 0.0  # the ball lies in the cup
    velocity = np.empty(6)  # angular, then linear, in world axes
    mujoco.mj_objectVelocity(model, data, mujoco.mjtObj.mjOBJ_BODY, model.body("ball").id, velocity, 0)
    far = tolerance(math.hypot(dx, dz), 0.5, INF, 0.25, 0.5, linear=True)
    fast = tolerance(math.sqrt(float(velocity[3:] @ velocity[3:])), 6.0, INF, 3.0, 0.5, linear=True)
    return (far + 2.0 * fast) / 3.0


def _pendulum_spin(model: mujoco.MjModel, data: mujoco.MjData, target: Array) -> float:
    return tolerance(abs(float(data.joint("hinge").qvel[0])), 9.0, INF, 4.5, 0.5, linear=True)


REWARDS: dict[str, Callable[[mujoco.MjModel, mujoco.MjData, Array], float]] = {
    "walker-walk-backwards": functools.partial(_walk_backwards, speed=1.0),
    "walker-run-backwards": functools.partial(_walk_backwards, speed=8.0),
    "cheetah-run-backwards": _cheetah_backwards,
    "cheetah-run-front": functools.partial(_cheetah_one_foot, lifted="bfoot"),
    "cheetah-run-back": functools.partial(_cheetah_one_foot, lifted="ffoot"),
    "cheetah-jump": _cheetah_jump,
    "hopper-hop-backwards": _hop_backwards,
    "reacher-three-easy": functools.partial(_reach, radius=TARGET_RADIUS["reacher-three-easy"]),
    "reacher-three-hard": functools.partial(_reach, radius=TARGET_RADIUS["reacher-three-hard"]),
    "cup-spin": _cup_spin,
    "pendulum-spin": _pendulum_spin,
}


def _draw_body(task: str, rng: np.random.Generator) -> State:
    """Walker, cheetah, hopper: qpos in joint order, then qvel in joint order, each value uniform.

    Root joints: within ROOT_BOUNDS. Other joints: position within the joint's range, velocity within +-4. Six hoppers
    in ten (one more draw, first of all) stand: rooty within +-0.3 and the other joints at a fifth of their draw.
    """
    model = load_model(task)
    standing = "hopper" in task and rng.uniform() < 0.6
    pose, motion = (np.array(bounds) for bounds in ROOT_BOUNDS[task])
    ranges = model.jnt_range[3:]
    qpos = np.concatenate([rng.uniform(*pose.T), rng.uniform(*ranges.T)])
    qvel = np.concatenate([rng.uniform(*motion.T), rng.uniform(-4.0, 4.0, len(ranges))])
    if standing:
        qpos[2] *= 0.3 / math.pi
        qpos[3:] *= 0.2
    return qpos, qvel, np.empty(0)


def _draw_cup(task: str, rng: np.random.Generator) -> State:
    """Cup in +-0.1 (x, z); ball around the target site; cup velocity in +-2 (x, z); ball velocity.

    The ball's offset from the target site is uniform: in a square of +-0.05 for half of the states (drawn first), of
    +-0.7 for the others. Its speed is uniform in [0, 10], its direction on the circle.
    """
    box = 0.05 if rng.uniform() < 0.5 else 0.7
    cup = rng.uniform(-0.1, 0.1, 2)
    offset = rng.uniform(-box, box, 2)
    # At qpos 0 the target site is at z = 0.6 - 0.05 and the ball at z = 0.2.
    qpos = np.array([cup[0], cup[1], cup[0] + offset[0], cup[1] + offset[1] + 0.35])
    cup_velocity = rng.uniform(-2.0, 2.0, 2)
    speed, direction = rng.uniform(0.0, 10.0), rng.uniform(0.0, 2.0 * math.pi)
    qvel = np.array([*cup_velocity, speed * math.cos(direction), speed * math.sin(direction)])
    return qpos, qvel, np.empty(0)


def _draw_pendulum(task: str, rng: np.random.Generator) -> State:
    """Angle uniform on the circle, angular velocity uniform in +-13."""
    return rng.uniform(-math.pi, math.pi, 1), rng.uniform(-13.0, 13.0, 1), np.empty(0)


def _draw_reacher(task: str, rng: np.random.Generator) -> State:
    """Joints: shoulder0 on the circle, the others within +-80 deg; velocities within +-5; extra: target x, y.

    The target is at a uniform distance of 0 to 2 (r_target + r_finger) from the finger, in a uniform direction, for
    seven states in ten (drawn before it); for the others in the ring of radii 0.05 to 0.2 about the shoulder.
    """
    limits = np.array([math.pi, math.radians(80.0), math.radians(80.0)])
    qpos = rng.uniform(-limits, limits)
    qvel = rng.uniform(-5.0, 5.0, 3)
    near = rng.uniform() < 0.7
    share, direction = rng.uniform(), rng.uniform(0.0, 2.0 * math.pi)
    circle = np.array([math.cos(direction), math.sin(direction)])
    if not near:
        return qpos, qvel, (0.05 + 0.15 * share) * circle
    angles = np.cumsum(qpos)
    finger = REACHER_LINK * np.array([np.cos(angles).sum(), np.sin(angles).sum()])
    return qpos, qvel, finger + 2.0 * share * (TARGET_RADIUS[task] + FINGER_RADIUS) * circle


def states(task: str) -> Iterator[State]:
    """The task's 1,000 states: qpos [nq], qvel [nv] and `extra`.

    `extra` is the target's world x and y, [2], for the reachers, and empty, [0], for every other task.
    """
    rng = np.random.default_rng([SEED, TASKS.index(task)])
    rules = {"cup-spin": _draw_cup, "pendulum-spin": _draw_pendulum}
    draw = _draw_reacher if task in TARGET_RADIUS else rules.get(task, _draw_body)
    for _ in range(NUM_STATES):
        yield draw(task, rng)


def rewards(task: str) -> Array:
    """The task's reward in each of its `states`, [1000]."""
    model = load_model(task)
    data = mujoco.MjData(model)
    values = np.empty(NUM_STATES)
    for index, (qpos, qvel, extra) in enumerate(states(task)):
        mujoco.mj_resetData(model, data)
        data.qpos[:] = qpos
        data.qvel[:] = qvel
        mujoco.mj_forward(model, data)
        values[index] = REWARDS[task](model, data, extra)
    return values


def read() -> dict[str, Array]:
    """The committed rewards, by task, [1000] each."""
    with np.load(FILE) as stored:
        return dict(zip(stored["tasks"].tolist(), stored["rewards"], strict=True))


def write() -> None:
    """Writes `mt30_rewards.npz` and prints what share of each task's rewards is 0, 1 and distinct."""
    table = np.stack([rewards(task) for task in TASKS])
    np.savez_compressed(FILE, tasks=np.array(TASKS), rewards=table)
    print(f"{'task':24}{'non-zero':>9}{'one':>7}{'distinct':>9}{'mean':>7}")
    for task, row in zip(TASKS, table, strict=True):
        nonzero, one, distinct = (row != 0).mean(), (row == 1).mean(), len(np.unique(row)) / len(row)
        print(f"{task:24}{nonzero:9.3f}{one:7.3f}{distinct:9.3f}{row.mean():7.3f}")


if __name__ == "__main__":
    write()
