"""A planar one-legged robot that is to hop along +x, with dflex's observation, reward and termination.

The physics (`hopper.xml`) is this project's own. Imports no torch.
"""

from __future__ import annotations

import numpy as np

from flowmbpo.envs.locomotion.body import Body

_NOISE = 0.05  # metres, radians, m/s, rad/s
_FALLEN_BELOW = -0.45  # metres from the height at the start
_HEIGHT_TOLERANCE = 0.15  # metres
_HEIGHT_CAP = 0.3  # metres
_LOW_COST = 200.0  # per square metre
_ANGLE_SCALE = 0.524  # radians, about 30 degrees
_ACTION_COST = 0.1


class Hopper(Body):
    """Positions are x, height above the standing height, pitch (forward lean positive), 3 joints.

    Observation: 0 height, m; 1 pitch, rad; 2:5 joint angles (hip, knee, ankle), rad; 5 forward and 6
    vertical velocity, m/s; 7 pitch rate and 8:11 joint velocities, rad/s.
    """

    model_file = "hopper.xml"
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
        height = np.clip(obs[:, 0] - (_FALLEN_BELOW + _HEIGHT_TOLERANCE), -1.0, _HEIGHT_CAP)
        height = np.where(height < 0, -_LOW_COST * height * height, height)
        lean = obs[:, 1] / _ANGLE_SCALE
        effort = action[:, 0] * action[:, 0] + action[:, 1] * action[:, 1] + action[:, 2] * action[:, 2]
        rewards: np.ndarray = obs[:, 5] + height + (1 - lean * lean) - _ACTION_COST * effort
        return rewards

    def terminated(self, obs: np.ndarray) -> np.ndarray:
        """The torso is more than 0.45 m below its standing height."""
        fallen: np.ndarray = obs[:, 0] < _FALLEN_BELOW
        return fallen
