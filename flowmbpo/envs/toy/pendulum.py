"""A torque-limited pendulum that must be swung up and held."""

from __future__ import annotations

import math

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from flowmbpo.envs.toy.system import Canvas, Noise, Pushed, ToySystem, Transition

DT = 0.05  # s
GRAVITY_GAIN = 15.0  # 3 g / (2 l), 1/s^2
TORQUE_GAIN = 3.0  # 3 / (m l^2)
MAX_TORQUE = 2.0
MAX_SPEED = 8.0  # rad/s


class Pendulum(ToySystem):
    """State [th, w]: angle (0 = upright, rad) and angular velocity (rad/s). Observation [cos th, sin th, w/4].

    Reward per physics step: 0.9 ((1 + cos th)/2)^2 exp(-w^2/20) + 0.1 (1 - a^2), after the step.
    """

    state_dim = 2

    def start(self, rng: np.random.Generator) -> list[float]:
        """th ~ U(-pi, pi), w ~ U(-1, 1)."""
        return [rng.uniform(-math.pi, math.pi), rng.uniform(-1.0, 1.0)]

    def transition(self, state: Float[Tensor, "B 2"], action: Float[Tensor, "B 1"], noise: Noise) -> Transition:
        """w' = clip(w + (15 sin th + 3 * 2 a) dt, -8, 8); th' = th + w' dt; twice."""
        angle, speed = state.unbind(dim=-1)
        torque = action[..., 0]
        push = torque * (TORQUE_GAIN * MAX_TORQUE * DT)
        ease = 0.1 - 0.1 * torque.square()
        reward = self.task.action_repeat * ease
        for _ in range(self.task.action_repeat):
            speed = torch.add(speed + push, angle.sin(), alpha=GRAVITY_GAIN * DT).clamp(-MAX_SPEED, MAX_SPEED)
            angle = torch.add(angle, speed, alpha=DT)
            upright = (1.0 + angle.cos()).square()  # 4 times the square of (1 + cos th)/2
            reward = torch.addcmul(reward, upright, torch.exp(speed.square() * -0.05), value=0.9 / 4)
        return torch.stack((angle, speed), dim=-1), reward

    def observe(self, state: Float[Tensor, "B 2"]) -> Float[Tensor, "B 3"]:
        angle, speed = state.unbind(dim=-1)
        return torch.stack((angle.cos(), angle.sin(), speed / 4), dim=-1)

    def draw(self, canvas: Canvas, state: list[float]) -> None:
        """The rod from its pivot, 1 unit long, in a window 3 units high."""
        tip = (math.sin(state[0]), math.cos(state[0]))
        canvas.line((0.0, 0.0), tip, width=0.12, colour=(178, 76, 52))
        canvas.disc((0.0, 0.0), radius=0.08, colour=(40, 40, 40))


class PushedPendulum(Pushed, Pendulum):
    """`Pendulum` under pushes of 2.0 rad/s before its physics, which limits the speed."""

    size = 2.0


class HiddenPendulum(Pendulum):
    """`Pendulum` of which only [cos th, sin th] is seen."""

    def observe(self, state: Float[Tensor, "B 2"]) -> Float[Tensor, "B 2"]:
        return super().observe(state)[..., :2].clone()
