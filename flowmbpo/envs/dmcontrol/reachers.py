"""What is brought to a place: ball in the cup, finger and spinner, fish, reacher with two links or three."""

from __future__ import annotations

import math
from importlib import resources
from typing import Any

import numpy as np

from flowmbpo.envs.dmcontrol.reading import FastTask, beyond, gaussian, indicator, sensor_places, sensor_view

_SPIN_DISTANCE = 0.5  # metres
_SPIN_SPEED = 6.0  # m/s
_OUTSIDE_SHARE = 0.1  # of episodes of cup-spin start wherever the ball touches nothing, not only in the cup
_START_X, _START_Z = (-0.2, 0.2), (0.2, 0.5)  # metres, joint coordinates
_FINGER_SPEED = 15.0  # rad/s
_FISH_JOINTS = ("tail1", "tail_twist", "tail2", "finright_roll", "finright_pitch", "finleft_roll", "finleft_pitch")


class Cup(FastTask):
    """Pays while the whole ball is inside the cup."""

    def __init__(self, model: Any, data: Any) -> None:
        target, ball = model.site("target").id, model.body("ball").id
        self._target = data.site_xpos[target, ::2]  # x and z
        self._ball = data.xpos[ball, ::2]
        self._target_size = model.site_size[target, ::2]
        self._ball_size = model.geom_size[model.geom("ball").id, :1]
        self._qpos, self._qvel = data.qpos, data.qvel

    def observed(self) -> tuple[np.ndarray, ...]:
        return self._qpos, self._qvel

    def reward(self) -> float:
        radius = self._ball_size.item()
        (x, z), (ball_x, ball_z) = self._target.tolist(), self._ball.tolist()
        half_x, half_z = self._target_size.tolist()
        return float(abs(x - ball_x) < half_x - radius and abs(z - ball_z) < half_z - radius)


class CupSpin(Cup):
    """Swing the ball fast and far from the cup (TD-MPC2)."""

    def __init__(self, model: Any, data: Any) -> None:
        super().__init__(model, data)
        self._dofs = np.array([model.joint(name).dofadr[0] for name in ("ball_x", "ball_z")], dtype=np.int64)

    def reward(self) -> float:
        apart = self._target - self._ball
        velocity = self._qvel.take(self._dofs)
        far = beyond(math.sqrt(apart.dot(apart)), _SPIN_DISTANCE)
        fast = beyond(math.sqrt(velocity.dot(velocity)), _SPIN_SPEED)
        return (1 - super().reward()) * (far + 2 * fast) / 3


def start_spin(task: Any, physics: Any) -> None:
    """cup-spin's episode start: the ball where it touches nothing and, in 90% of the episodes, in the cup."""
    anywhere = task.random.uniform() < _OUTSIDE_SHARE
    placed = False
    while not placed:  # 2% of the positions are in the target, so some 50 are drawn
        physics.named.data.qpos["ball_x"] = task.random.uniform(*_START_X)
        physics.named.data.qpos["ball_z"] = task.random.uniform(*_START_Z)
        physics.after_reset()
        placed = physics.data.ncon == 0 and (anywhere or bool(physics.in_target()))
    task.after_step(physics)  # all that dm_control does at a start beside drawing one


class FingerSpin(FastTask):
    """Pays while the spinner turns at 15 rad/s or faster, in the negative direction."""

    def __init__(self, model: Any, data: Any) -> None:
        self._sensors = data.sensordata
        self._angles = sensor_places(model, "proximal", "distal")
        self._velocities = sensor_places(model, "proximal_velocity", "distal_velocity", "hinge_velocity")
        self._touch = sensor_places(model, "touchtop", "touchbottom")
        self._hinge_velocity = sensor_view(model, data, "hinge_velocity")
        self._tip = sensor_view(model, data, "tip")[::2]  # x and z
        self._spinner = sensor_view(model, data, "spinner")[::2]

    def observed(self) -> tuple[np.ndarray, ...]:
        angles, velocities, touch = map(self._sensors.take, (self._angles, self._velocities, self._touch))
        return angles, self._tip - self._spinner, velocities, np.log1p(touch)

    def reward(self) -> float:
        return float(self._hinge_velocity.item() <= -_FINGER_SPEED)


class FingerTurn(FingerSpin):
    """Pays while the spinner's tip is in the target. Its place is part of the model, and so is its size."""

    def __init__(self, model: Any, data: Any) -> None:
        super().__init__(model, data)
        self._target = sensor_view(model, data, "target")[::2]
        self._target_size = model.site_size[model.site("target").id, :1]

    def observed(self) -> tuple[np.ndarray, ...]:
        return *super().observed(), self._target - self._spinner, np.array([self._distance()])

    def reward(self) -> float:
        return float(self._distance() <= 0)

    def _distance(self) -> float:
        """Metres from the tip to the target's edge, negative inside."""
        apart = (self._target - self._spinner) - (self._tip - self._spinner)
        return math.sqrt(apart.dot(apart)) - float(self._target_size.item())


class FishUpright(FastTask):
    """Keep the belly down."""

    def __init__(self, model: Any, data: Any) -> None:
        self._qpos, self._qvel = data.qpos, data.qvel
        self._joints = np.array([model.joint(name).qposadr[0] for name in _FISH_JOINTS], dtype=np.int64)
        self._upright = data.xmat[model.body("torso").id, 8:9]

    def observed(self) -> tuple[np.ndarray, ...]:
        return self._qpos.take(self._joints), self._upright, self._qvel

    def reward(self) -> float:
        return gaussian(abs(self._upright.item() - 1))


class FishSwim(FishUpright):
    """Bring the mouth to the target, which is part of the model."""

    def __init__(self, model: Any, data: Any) -> None:
        super().__init__(model, data)
        target, mouth = model.geom("target").id, model.geom("mouth").id
        self._target = data.geom_xpos[target]
        self._mouth = data.geom_xpos[mouth]
        self._mouth_frame = data.geom_xmat[mouth].reshape(3, 3)
        self._target_size = model.geom_size[target, :1]
        self._mouth_size = model.geom_size[mouth, :1]

    def observed(self) -> tuple[np.ndarray, ...]:
        return self._qpos.take(self._joints), self._upright, self._to_target(), self._qvel

    def reward(self) -> float:
        radii = self._mouth_size.item() + self._target_size.item()
        apart = self._to_target()
        distance = math.sqrt(apart.dot(apart))
        in_target = 1.0 if distance <= radii else gaussian((distance - radii) / (2 * radii))
        upright = 0.5 * (self._upright.item() + 1)
        return float((7 * in_target + upright) / 8)

    def _to_target(self) -> np.ndarray:
        """From the mouth to the target in the mouth's frame, metres [3]."""
        return np.asarray((self._target - self._mouth).dot(self._mouth_frame))


class Reacher(FastTask):
    """Hold the finger in the target. Its place is part of the model, and so is its size."""

    def __init__(self, model: Any, data: Any) -> None:
        target, finger = model.geom("target").id, model.geom("finger").id
        self._target = data.geom_xpos[target, :2]
        self._finger = data.geom_xpos[finger, :2]
        self._target_size = model.geom_size[target, :1]
        self._finger_size = model.geom_size[finger, :1]
        self._qpos, self._qvel = data.qpos, data.qvel

    def observed(self) -> tuple[np.ndarray, ...]:
        return self._qpos, self._target - self._finger, self._qvel

    def reward(self) -> float:
        apart = self._target - self._finger
        radii = self._target_size.item() + self._finger_size.item()
        return indicator(math.sqrt(apart.dot(apart)), 0.0, radii)


def make_three_links(target_radius: float, random: np.random.RandomState) -> Any:
    """The suite's task with an arm of three links (TD-MPC2): 1000 control steps of 20 ms."""
    from dm_control.rl import control
    from dm_control.suite import common, reacher

    model = resources.files(__package__).joinpath("reacher_three.xml").read_text(encoding="utf-8")
    physics = reacher.Physics.from_xml_string(model, common.ASSETS)
    # The suite's task sets this at an episode's start only; the reward depends on it from the beginning.
    physics.named.model.geom_size["target", 0] = target_radius
    return control.Environment(physics, reacher.Reacher(target_radius, random=random), time_limit=20.0)
