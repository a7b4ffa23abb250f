"""A point between two equally good goals: the optimal action is one way or the other, never their mean."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from flowmbpo.envs.toy.system import Canvas, Noise, ToySystem, Transition

STRIDE = 0.15  # of a full action
BOUND = 2.0
GOAL = 1.0  # the goals are (-1, 0) and (1, 0)
GOAL_WIDTH, VALLEY_WIDTH = 0.25, 0.4
VALLEY_COST = 0.5
START_SPREAD = 0.02


def _bell(x: Float[Tensor, " B"], y: Float[Tensor, " B"], width: float) -> Float[Tensor, " B"]:
    return torch.exp((x.square() + y.square()) / (-2.0 * width**2))


class TwoGoals(ToySystem):
    """State and observation [x, y]; p' = clip(p + .15 a, -2, 2) in each coordinate.

    Reward of the point reached: sum over both goals g = (+-1, 0) of exp(-|p - g|^2 / (2 .25^2)),
    minus .5 exp(-|p|^2 / (2 .4^2)), a valley where the episode starts. The task is its own mirror
    image in x: at the start a = (1, 0) and (-1, 0) are equally good and their mean stays in the valley.
    """

    state_dim = 2
    units_high = 2 * BOUND

    def start(self, rng: np.random.Generator) -> list[float]:
        """x, y ~ N(0, .02^2)."""
        point: list[float] = rng.normal(0.0, START_SPREAD, size=2).tolist()
        return point

    def transition(self, state: Float[Tensor, "B 2"], action: Float[Tensor, "B 2"], noise: Noise) -> Transition:
        reached = (state + STRIDE * action).clamp(-BOUND, BOUND)
        x, y = reached.unbind(dim=-1)
        goals = _bell(x - GOAL, y, GOAL_WIDTH) + _bell(x + GOAL, y, GOAL_WIDTH)
        return reached, goals - VALLEY_COST * _bell(x, y, VALLEY_WIDTH)

    def draw(self, canvas: Canvas, state: list[float]) -> None:
        """The goals, the valley and the point, seen from above; 4 units high."""
        canvas.disc((0.0, 0.0), radius=VALLEY_WIDTH, colour=(226, 206, 200))
        for side in (-GOAL, GOAL):
            canvas.disc((side, 0.0), radius=GOAL_WIDTH, colour=(150, 200, 152))
        canvas.disc((state[0], state[1]), radius=0.08, colour=(178, 76, 52))
