"""The robots: start, observation, reward and termination, which a locomotion task adds to the physics.

All arithmetic is element by element: a copy's numbers never depend on how many environments there are.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from types import MappingProxyType

import numpy as np

# The ant's.
_REST = np.array([0.0, 1.0, 0.0, -1.0, 0.0, -1.0, 0.0, 1.0])  # hip and ankle of each leg, radians
_START_HEIGHT = 0.75  # metres, of the torso's centre
_POSITION_NOISE = 0.1  # metres, each coordinate
_ANGLE_NOISE = math.pi / 24  # radians, about a random axis
_JOINT_NOISE = 0.2  # radians
_VELOCITY_NOISE = 0.25  # m/s and rad/s
_TARGET = 1e4  # metres along +x
_JOINT_VELOCITY_SCALE = 0.1
_UP_REWARD = 0.1
_HALF_ROOT = math.sqrt(0.5)
# The hopper's.
_NOISE = 0.05  # metres, radians, m/s, rad/s
_HEIGHT_TOLERANCE = 0.15  # metres
_HEIGHT_CAP = 0.3  # metres
_LOW_COST = 200.0  # per square metre
_ANGLE_SCALE = 0.524  # radians, about 30 degrees
_ACTION_COST = 0.1


class Body(ABC):
    """One kind of robot. Arrays are float64; N environments, Q positions, V velocities, A actions, O observation.

    As in dflex, the reward of a step is that of the observation *before* the step, and the
    termination that of the observation after it.
    """

    model_file: str
    fallen_below: float
    """Torso height in the observation's terms, metres."""
    level_velocities: int
    """How many of the first velocities are the root's level ones: forward, then left."""

    @abstractmethod
    def start(self, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Positions [Q] and velocities [V] of a new episode."""

    @abstractmethod
    def observe(self, qpos: np.ndarray, qvel: np.ndarray, action: np.ndarray) -> np.ndarray:
        """Observations [N, O] of positions [N, Q], velocities [N, V] and last actions [N, A]."""

    @abstractmethod
    def reward(self, obs: np.ndarray, action: np.ndarray) -> np.ndarray:
        """Rewards [N] of `action` [N, A] in `obs` [N, O]."""

    def terminated(self, obs: np.ndarray) -> np.ndarray:
        """Whether the episodes that reached `obs` [N, O] end there, bool [N]: the torso is too low."""
        return np.asarray(obs[:, 0] < self.fallen_below)


class Ant(Body):
    """Runs along +x. Its physics (`ant.xml`) agrees with dflex's Ant in kind, not in value.

    Positions are x y z, quaternion wxyz, 8 joints; velocities linear (world), angular (body), 8 joints.

    The world of the *observation* is dflex's, whose second axis points up: (x, y, z) of MuJoCo is (x, z, -y) there. Its
    entries: 0 torso height, m; 1:5 torso quaternion xyzw (upright: about -90 degrees about x); 5:8 linear velocity of
    the torso's centre, m/s, so that 5 is the forward speed; 8:11 angular velocity, rad/s; 11:19 joint angles, rad;
    19:27 joint velocities, 0.1 rad/s; 27 vertical part of the torso's up axis; 28 cosine between the torso's forward
    axis and the horizontal direction to a target far ahead; 29:37 last action (0 at the start).
    """

    model_file = "ant.xml"
    fallen_below = 0.27
    level_velocities = 2

    def start(self, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """0.75 m high in the rest pose, facing +x, with uniform noise.

        Within +-0.1 m in position, +-7.5 degrees about a random axis, +-0.2 rad in each joint and +-0.25 (m/s, rad/s)
        in each velocity, the root's as a twist about the world's origin, as dflex draws it.
        """
        place = np.array([0.0, 0.0, _START_HEIGHT]) + rng.uniform(-_POSITION_NOISE, _POSITION_NOISE, 3)
        angle = rng.uniform(-_ANGLE_NOISE, _ANGLE_NOISE)
        axis = rng.uniform(-1.0, 1.0, 3)
        axis /= math.sqrt(float(axis @ axis))
        turn = np.array([math.cos(angle / 2), *(math.sin(angle / 2) * axis)])
        joints = _REST + rng.uniform(-_JOINT_NOISE, _JOINT_NOISE, 8)
        linear, spin = rng.uniform(-_VELOCITY_NOISE, _VELOCITY_NOISE, (2, 3))
        joint_velocities = rng.uniform(-_VELOCITY_NOISE, _VELOCITY_NOISE, 8)
        # A twist about the world's origin: the torso, away from it, also moves with the turning.
        linear = linear + np.cross(spin, place)
        # The spin along the torso's axes: turned by the inverse rotation.
        w, axis = turn[0], -turn[1:]
        twice = 2.0 * np.cross(axis, spin)
        spin = spin + w * twice + np.cross(axis, twice)
        return np.concatenate((place, turn, joints)), np.concatenate((linear, spin, joint_velocities))

    def observe(self, qpos: np.ndarray, qvel: np.ndarray, action: np.ndarray) -> np.ndarray:
        x, y, z, qw, qx, qy, qz = qpos[:, :7].T
        vx, vy, vz, wx, wy, wz = qvel[:, :6].T
        # Columns of the rotation matrix: the torso's axes in MuJoCo's world.
        forward = (1 - 2 * (qy * qy + qz * qz), 2 * (qx * qy + qw * qz), 2 * (qx * qz - qw * qy))
        left = (2 * (qx * qy - qw * qz), 1 - 2 * (qx * qx + qz * qz), 2 * (qy * qz + qw * qx))
        up = (2 * (qx * qz + qw * qy), 2 * (qy * qz - qw * qx), 1 - 2 * (qx * qx + qy * qy))
        spin = [forward[axis] * wx + left[axis] * wy + up[axis] * wz for axis in range(3)]
        ahead, aside = _TARGET - x, -y
        distance = np.sqrt(ahead * ahead + aside * aside)
        heading = (forward[0] * ahead + forward[1] * aside) / distance
        # The product of -90 degrees about x and the torso's quaternion.
        turned = (_HALF_ROOT * part for part in (qx - qw, qy + qz, qz - qy, qw + qx))
        torso = (z, *turned, vx, vz, -vy, spin[0], spin[2], -spin[1])
        return np.column_stack((*torso, qpos[:, 7:], _JOINT_VELOCITY_SCALE * qvel[:, 6:], up[2], heading, action))

    def reward(self, obs: np.ndarray, action: np.ndarray) -> np.ndarray:
        """Forward speed + 0.1 up + heading + (height - 0.27), as dflex's Ant; actions cost nothing."""
        return np.asarray(obs[:, 5] + _UP_REWARD * obs[:, 27] + obs[:, 28] + (obs[:, 0] - self.fallen_below))


class Hopper(Body):
    """Hops along +x, in the plane. Its physics (`hopper.xml`) is this project's own.

    Positions are x, height above the standing height, pitch (forward lean positive), 3 joints.

    Observation: 0 height, m; 1 pitch, rad; 2:5 joint angles (hip, knee, ankle), rad; 5 forward and 6
    vertical velocity, m/s; 7 pitch rate and 8:11 joint velocities, rad/s.
    """

    model_file = "hopper.xml"
    fallen_below = -0.45  # from the height at the start
    level_velocities = 1

    def start(self, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Standing straight, with noise within +-0.05 in every position and velocity."""
        return rng.uniform(-_NOISE, _NOISE, 6), rng.uniform(-_NOISE, _NOISE, 6)

    def observe(self, qpos: np.ndarray, qvel: np.ndarray, action: np.ndarray) -> np.ndarray:
        return np.concatenate((qpos[:, 1:], qvel), axis=1)

    def reward(self, obs: np.ndarray, action: np.ndarray) -> np.ndarray:
        """Forward speed + height term + 1 - (pitch / 0.524)^2 - 0.1 |action|^2, as dflex's Hopper.

        The height term is h = height + 0.3 m, clipped to [-1, 0.3], and -200 h^2 where h < 0.
        """
        height = np.clip(obs[:, 0] - (self.fallen_below + _HEIGHT_TOLERANCE), -1.0, _HEIGHT_CAP)
        height = np.where(height < 0, -_LOW_COST * height * height, height)
        lean = obs[:, 1] / _ANGLE_SCALE
        effort = action[:, 0] * action[:, 0] + action[:, 1] * action[:, 1] + action[:, 2] * action[:, 2]
        return np.asarray(obs[:, 5] + height + (1 - lean * lean) - _ACTION_COST * effort)


BODIES: Mapping[str, Body] = MappingProxyType({"mujoco-ant": Ant(), "mujoco-hopper": Hopper()})
