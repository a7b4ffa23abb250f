"""A thrusted ball on a floor whose contact can be made as stiff as one likes."""

from __future__ import annotations

import math

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from flowmbpo.envs.toy.system import Canvas, Noise, ToySystem, Transition
from flowmbpo.spec import TaskInfo

DT = 0.05  # s, an agent step
GRAVITY = 9.81  # m/s^2
THRUST = 4.0  # m/s^2 at full action: less than gravity, so the ball cannot hover
DAMPING_RATIO = 0.07
APEX = 1.0  # m
APEX_WIDTH = 0.3  # m
SOFT, STIFF = 400.0, 40_000.0  # 1/s^2, stiffness per unit mass
_PHASE = 0.2  # rad of the contact's oscillation per substep; semi-implicit Euler is stable below 2


class Bounce(ToySystem):
    """State and observation [h, v]: height of the ball's underside (m) and upward speed (m/s).

    v' = 4 a - 9.81 + [h < 0] max(-k h - 2 z sqrt(k) v, 0), h' = v: a spring and a damper that push and never pull, of
    `stiffness` k (1/s^2). The damping ratio z = .07 is the same for every k, so a fast bounce always keeps .81 of its
    speed (Schwager and Poeschel 2007) and only the contact's duration, about pi / sqrt(k), changes: .16 s at k = 400,
    three agent steps; .016 s at 40,000, a third of one. Semi-implicit Euler with as many substeps as keep sqrt(k) dt <=
    .2. Reward exp(-((h - 1)/.3)^2), after the step.
    """

    state_dim = 2

    def __init__(self, task: TaskInfo, stiffness: float) -> None:
        super().__init__(task)
        self.stiffness = stiffness
        self.substeps = math.ceil(DT * math.sqrt(stiffness) / _PHASE)

    def start(self, rng: np.random.Generator) -> list[float]:
        """h ~ U(.3, 1.5), v ~ U(-1, 1)."""
        return [rng.uniform(0.3, 1.5), rng.uniform(-1.0, 1.0)]

    def transition(self, state: Float[Tensor, "B 2"], action: Float[Tensor, "B 1"], noise: Noise) -> Transition:
        """`substeps` steps of the ball under one thrust."""
        height, speed = state.unbind(dim=-1)
        dt = DT / self.substeps
        damping = 2.0 * DAMPING_RATIO * math.sqrt(self.stiffness)
        fall = (THRUST * action[..., 0] - GRAVITY) * dt
        for _ in range(self.substeps):
            push = (-self.stiffness * height - damping * speed).clamp(min=0.0) * (height < 0)
            speed = torch.add(speed + fall, push, alpha=dt)
            height = torch.add(height, speed, alpha=dt)
        reward = torch.exp(-((height - APEX) / APEX_WIDTH).square())
        return torch.stack((height, speed), dim=-1), reward

    def draw(self, canvas: Canvas, state: list[float]) -> None:
        """The ball over the floor and the rewarded height, in a window 3 m high."""
        floor, radius = -1.2, 0.12
        canvas.line((-2.0, floor), (2.0, floor), width=0.04, colour=(120, 120, 120))
        canvas.line((-2.0, floor + APEX + radius), (2.0, floor + APEX + radius), width=0.02, colour=(86, 156, 90))
        canvas.disc((0.0, floor + radius + state[0]), radius=radius, colour=(178, 76, 52))
