"""Walking along a ditch in gusty wind: the reward is highest at its edge, and climbing out is slow."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from flowmbpo.envs.toy.canvas import Canvas
from flowmbpo.envs.toy.logistic import logistic
from flowmbpo.envs.toy.system import ToySystem

STRIDE = 0.15  # of a full action
LOWEST, HIGHEST = -1.0, 2.5
EDGE_WIDTH = 0.03


class Gust(ToySystem):
    """State y, the distance from the ditch (y <= 0). Observation [y, tanh 4y].

    Above the ditch y' = clip(y + .15 a + g, -1, 2.5) with the push g = +d where u > 1 - p (`rate_up`),
    -d where u < p (`rate_down`), else 0; in it y' = clip(y + c (a + 1)/2, -1, 2.5). u ~ U(0, 1) is fresh
    each step. Reward sigmoid(y'/.03) exp(-max(y', 0)).
    """

    state_dim = 1
    noise_dim = 1
    rate_up: ClassVar[float] = 0.2
    rate_down: ClassVar[float] = 0.2
    push: ClassVar[float] = 0.5
    climb: ClassVar[float] = 0.05

    def start(self, rng: np.random.Generator) -> list[float]:
        """y ~ U(.2, 1.7)."""
        return [rng.uniform(0.2, 1.7)]

    def transition(
        self, state: Float[Tensor, "B 1"], action: Float[Tensor, "B 1"], noise: Float[Tensor, "B 1"]
    ) -> tuple[Float[Tensor, "B 1"], Float[Tensor, " B"]]:
        """One step on the bank or in the ditch; the event itself has no gradient."""
        up, down = noise > 1.0 - self.rate_up, noise < self.rate_down
        pushed = state + STRIDE * action + self.push * (up.to(state.dtype) - down.to(state.dtype))
        climbed = state + self.climb * (action + 1.0) / 2.0
        reached = torch.where(state > 0, pushed, climbed).clamp(LOWEST, HIGHEST)
        y = reached[..., 0]
        return reached, logistic(y / EDGE_WIDTH) * torch.exp(-y.clamp(min=0.0))

    def observe(self, state: Float[Tensor, "B 1"]) -> Float[Tensor, "B 2"]:
        """[y, tanh 4y]."""
        return torch.cat((state, torch.tanh(4.0 * state)), dim=-1)

    def draw(self, state: list[float]) -> np.ndarray:
        """The bank to the right, the ditch's slope to the left and the walker; 3 units high, 4 wide."""
        canvas = Canvas(units_high=3.0)
        centre = (LOWEST + HIGHEST) / 2

        def ground(y: float) -> tuple[float, float]:
            return y - centre, min(y, 0.0) - 0.2

        canvas.line(ground(LOWEST), ground(0.0), width=0.05, colour=(120, 120, 120))
        canvas.line(ground(0.0), ground(HIGHEST), width=0.05, colour=(86, 156, 90))
        x, height = ground(state[0])
        canvas.line((x, height + 0.1), (x, height + 0.4), width=0.1, colour=(40, 40, 40))
        canvas.disc((x, height + 0.5), radius=0.1, colour=(178, 76, 52))
        return canvas.frame()


class RarePush(Gust):
    """Pushes of .5 with probability .04 to either side, and a climb ten times as slow (c = .005).

    The system's description fixes no c; .005 is where the best constant target earns about the
    53 per 100 steps that were published for it.
    """

    rate_up = 0.04
    rate_down = 0.04
    climb = 0.005


class SkewPush(RarePush):
    """Pushes of .6 with probability .03, only towards the ditch; the slow climb of `RarePush`."""

    rate_up = 0.0
    rate_down = 0.03
    push = 0.6
