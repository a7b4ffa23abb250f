"""One-dimensional maps that the action shifts: one smooth, one with a wall, one with a fold."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from flowmbpo.envs.toy.system import Canvas, Noise, ToySystem, Transition
from flowmbpo.spec import TaskInfo

SHIFT = 0.6  # what a full action adds to the map's argument
TARGET = 0.5  # where the reward is highest: off every map's wall and fold
WALL = 0.8


def smooth_map(x: Float[Tensor, "..."], a: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """A diffeomorphism of the line: x' = .8 s + .2 sin 3s, s = x + .6 a.

    dx'/dx = .8 + .6 cos 3s, in [.2, 1.4]; dx'/da = .6 dx'/dx.
    """
    s = x + SHIFT * a
    return 0.8 * s + 0.2 * torch.sin(3.0 * s)


def inelastic_map(x: Float[Tensor, "..."], a: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """A wall that stops: x' = min(.8 s + .2, .8), s = x + .6 a; not injective.

    dx'/dx = .8 where s < .75 and 0 where s > .75; dx'/da = .6 dx'/dx. Beyond the wall the
    reward has no gradient, though moving back pays.
    """
    s = x + SHIFT * a
    return (0.8 * s + 0.2).clamp(max=WALL)


def fold_map(x: Float[Tensor, "..."], a: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """A fold at s = 0: x' = (1 - s^2) / (1 + s^2), s = x + .6 a; in (-1, 1], not monotone.

    dx'/dx = -4 s / (1 + s^2)^2, of both signs; dx'/da = .6 dx'/dx. For a fixed action an exact flow transports the line
    monotonely, so none represents this map; the better direction of the action depends on the side of the fold.
    """
    square = (x + SHIFT * a).square()
    return (1.0 - square) / (1.0 + square)


class ShiftedMap(ToySystem):
    """State and observation [x]; x' = f(x, a). Reward 1 - (x' - .5)^2: d reward/d a changes its sign at the optimum."""

    state_dim = 1
    units_high = 4.0

    def __init__(self, task: TaskInfo, follow: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__(task)
        self.follow = follow

    def start(self, rng: np.random.Generator) -> list[float]:
        """x ~ U(-1, 1)."""
        return [rng.uniform(-1.0, 1.0)]

    def transition(self, state: Float[Tensor, "B 1"], action: Float[Tensor, "B 1"], noise: Noise) -> Transition:
        reached = self.follow(state, action)
        return reached, 1.0 - (reached[..., 0] - TARGET).square()

    def draw(self, canvas: Canvas, state: list[float]) -> None:
        """The graph of f without action, the target's height, and where x lies under it; 4 units high."""
        grid = torch.linspace(-2.6, 2.6, 53)
        points = list(zip(grid.tolist(), self.follow(grid, torch.zeros(())).tolist(), strict=True))
        canvas.line((-2.6, 0.0), (2.6, 0.0), width=0.02, colour=(180, 180, 180))
        canvas.line((-2.6, TARGET), (2.6, TARGET), width=0.02, colour=(86, 156, 90))
        for left, right in pairwise(points):
            canvas.line(left, right, width=0.04, colour=(120, 120, 120))
        x = state[0]
        height = float(self.follow(torch.tensor(x), torch.zeros(())))
        canvas.line((x, 0.0), (x, height), width=0.03, colour=(178, 76, 52))
        canvas.disc((x, 0.0), radius=0.08, colour=(40, 40, 40))
        canvas.disc((x, height), radius=0.08, colour=(178, 76, 52))
