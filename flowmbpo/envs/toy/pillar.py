"""A point that is thrown to one side or the other of a pillar in its middle."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from flowmbpo.envs.toy.canvas import Canvas
from flowmbpo.envs.toy.logistic import logistic
from flowmbpo.envs.toy.system import ToySystem

PULL, STRIDE, THROW = 0.3, 0.6, 0.6
BOUND = 2.0
PILLAR_WIDTH = 0.2
REACH, REACH_WIDTH = 1.2, 0.05
EFFORT = 0.3


class Pillar(ToySystem):
    """State and observation [y]; y' = clip(.3 y + .6 a + .6 sign(u - .5), -2, 2), u ~ U(0, 1) fresh each step.

    Reward (1 - exp(-(y'/.2)^2)) sigmoid((1.2 - |y'|)/.05) - .3 a^2: nothing at the pillar, nothing far out.
    The mean of the next state may lie on the pillar where the state itself never does.
    """

    state_dim = 1
    noise_dim = 1

    def start(self, rng: np.random.Generator) -> list[float]:
        """y ~ U(-1, 1)."""
        return [rng.uniform(-1.0, 1.0)]

    def transition(
        self, state: Float[Tensor, "B 1"], action: Float[Tensor, "B 1"], noise: Float[Tensor, "B 1"]
    ) -> tuple[Float[Tensor, "B 1"], Float[Tensor, " B"]]:
        """One throw."""
        thrown = PULL * state + STRIDE * action + THROW * torch.sign(noise - 0.5)
        reached = thrown.clamp(-BOUND, BOUND)
        y = reached[..., 0]
        clear = 1.0 - torch.exp(-(y / PILLAR_WIDTH).square())
        within = logistic((REACH - y.abs()) / REACH_WIDTH)
        return reached, clear * within - EFFORT * action[..., 0].square()

    def observe(self, state: Float[Tensor, "B 1"]) -> Float[Tensor, "B 1"]:
        """[y]."""
        return state.clone()

    def draw(self, state: list[float]) -> np.ndarray:
        """The rewarded ground, the pillar and the point, in a window 3.3 units high."""
        canvas = Canvas(units_high=3.3)
        canvas.line((-BOUND, -0.5), (BOUND, -0.5), width=0.04, colour=(160, 160, 160))
        canvas.line((-REACH, -0.5), (REACH, -0.5), width=0.05, colour=(86, 156, 90))
        canvas.line((0.0, -0.4), (0.0, 0.6), width=2 * PILLAR_WIDTH, colour=(120, 120, 120))
        canvas.disc((state[0], -0.38), radius=0.1, colour=(178, 76, 52))
        return canvas.frame()
