"""Rare costly events: gusts at a ditch's edge, a pillar that the mean runs into, a runner that may slip."""

from __future__ import annotations

import math
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from flowmbpo.envs.toy.system import Canvas, Noise, ToySystem, Transition

# The ditch's.
STRIDE = 0.15  # of a full action
LOWEST, HIGHEST = -1.0, 2.5
EDGE_WIDTH = 0.03
# The pillar's.
PULL, PILLAR_STRIDE, THROW = 0.3, 0.6, 0.6
BOUND = 2.0
PILLAR_WIDTH = 0.2
REACH, REACH_WIDTH = 1.2, 0.05
EFFORT = 0.3
# The runner's.
GAIN = 0.15  # of speed, at full action
MAX_SPEED = 2.0
MAX_RISK, RISKY_SPEED, RISK_WIDTH = 0.4, 1.2, 0.08
RECOVERY = 0.05  # of spin, each step on the ground: 20 steps
START_SPEED = 0.2
UPRIGHT, UPRIGHT_WIDTH = 0.02, 0.01


def logistic(x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """1 / (1 + exp(-x)) as (1 + tanh(x/2)) / 2, to absolute rounding.

    `torch.sigmoid` rounds rows that fill no vector register otherwise: a reward would depend on the other copies.
    """
    return 0.5 + 0.5 * torch.tanh(0.5 * x)


class Gust(ToySystem):
    """Walking along a ditch in gusty wind: the reward is highest at its edge, and climbing out is slow.

    State y, the distance from the ditch (y <= 0). Observation [y, tanh 4y].

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

    def transition(self, state: Float[Tensor, "B 1"], action: Float[Tensor, "B 1"], noise: Noise) -> Transition:
        """One step on the bank or in the ditch; the event itself has no gradient."""
        up, down = noise > 1.0 - self.rate_up, noise < self.rate_down
        pushed = state + STRIDE * action + self.push * (up.to(state.dtype) - down.to(state.dtype))
        climbed = state + self.climb * (action + 1.0) / 2.0
        reached = torch.where(state > 0, pushed, climbed).clamp(LOWEST, HIGHEST)
        y = reached[..., 0]
        return reached, logistic(y / EDGE_WIDTH) * torch.exp(-y.clamp(min=0.0))

    def observe(self, state: Float[Tensor, "B 1"]) -> Float[Tensor, "B 2"]:
        return torch.cat((state, torch.tanh(4.0 * state)), dim=-1)

    def draw(self, canvas: Canvas, state: list[float]) -> None:
        """The bank to the right, the ditch's slope to the left and the walker; 3 units high, 4 wide."""
        centre = (LOWEST + HIGHEST) / 2

        def ground(y: float) -> tuple[float, float]:
            return y - centre, min(y, 0.0) - 0.2

        canvas.line(ground(LOWEST), ground(0.0), width=0.05, colour=(120, 120, 120))
        canvas.line(ground(0.0), ground(HIGHEST), width=0.05, colour=(86, 156, 90))
        x, height = ground(state[0])
        canvas.line((x, height + 0.1), (x, height + 0.4), width=0.1, colour=(40, 40, 40))
        canvas.disc((x, height + 0.5), radius=0.1, colour=(178, 76, 52))


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


class Pillar(ToySystem):
    """State and observation [y]; y' = clip(.3 y + .6 a + .6 sign(u - .5), -2, 2), u ~ U(0, 1) fresh each step.

    Reward (1 - exp(-(y'/.2)^2)) sigmoid((1.2 - |y'|)/.05) - .3 a^2: nothing at the pillar, nothing far out.
    The mean of the next state may lie on the pillar where the state itself never does.
    """

    state_dim = 1
    noise_dim = 1
    units_high = 3.3

    def start(self, rng: np.random.Generator) -> list[float]:
        """y ~ U(-1, 1)."""
        return [rng.uniform(-1.0, 1.0)]

    def transition(self, state: Float[Tensor, "B 1"], action: Float[Tensor, "B 1"], noise: Noise) -> Transition:
        thrown = PULL * state + PILLAR_STRIDE * action + THROW * torch.sign(noise - 0.5)
        reached = thrown.clamp(-BOUND, BOUND)
        y = reached[..., 0]
        clear = 1.0 - torch.exp(-(y / PILLAR_WIDTH).square())
        within = logistic((REACH - y.abs()) / REACH_WIDTH)
        return reached, clear * within - EFFORT * action[..., 0].square()

    def draw(self, canvas: Canvas, state: list[float]) -> None:
        """The rewarded ground, the pillar and the point, in a window 3.3 units high."""
        canvas.line((-BOUND, -0.5), (BOUND, -0.5), width=0.04, colour=(160, 160, 160))
        canvas.line((-REACH, -0.5), (REACH, -0.5), width=0.05, colour=(86, 156, 90))
        canvas.line((0.0, -0.4), (0.0, 0.6), width=2 * PILLAR_WIDTH, colour=(120, 120, 120))
        canvas.disc((state[0], -0.38), radius=0.1, colour=(178, 76, 52))


class Slip(ToySystem):
    """State and observation [v, b]: speed, and the spin left from a slip (0 = on its feet).

    On its feet (b <= 0) it slips with probability .4 sigmoid((v - 1.2)/.08): v' = 0, b' = 1; otherwise v' = clip(v +
    .15 a, 0, 2). While b > 0, v' = 0 and b' = max(b - c, 0). Reward .5 v' sigmoid((.02 - b')/.01). The system's
    description fixes neither c nor the start nor what is observed; c = .05 and an almost standing start are where the
    best constant speed earns about the 33.5 per 100 steps that were published for it.
    """

    state_dim = 2
    noise_dim = 1

    def start(self, rng: np.random.Generator) -> list[float]:
        """v ~ U(0, .2), b = 0."""
        return [rng.uniform(0.0, START_SPEED), 0.0]

    def transition(self, state: Float[Tensor, "B 2"], action: Float[Tensor, "B 1"], noise: Noise) -> Transition:
        """One stride, one slip or one step of lying; the event itself has no gradient."""
        speed, spin = state.unbind(dim=-1)
        lying = spin > 0
        risk = MAX_RISK * logistic((speed - RISKY_SPEED) / RISK_WIDTH)
        slips = ~lying & (noise[..., 0] < risk)
        ran = (speed + GAIN * action[..., 0]).clamp(0.0, MAX_SPEED)
        speed = ran.masked_fill(lying | slips, 0.0)
        spin = (spin - RECOVERY).clamp(min=0.0).masked_fill(slips, 1.0)
        reward = 0.5 * speed * logistic((UPRIGHT - spin) / UPRIGHT_WIDTH)
        return torch.stack((speed, spin), dim=-1), reward

    def draw(self, canvas: Canvas, state: list[float]) -> None:
        """The runner, leaning with its spin, over a bar as long as its speed; 3 units high."""
        speed, spin = state
        canvas.line((-1.8, -0.6), (1.8, -0.6), width=0.03, colour=(120, 120, 120))
        lean = spin * math.pi / 2
        head = (-0.8 + math.sin(lean), -0.5 + math.cos(lean))
        canvas.line((-0.8, -0.5), head, width=0.12, colour=(40, 40, 40))
        canvas.disc(head, radius=0.14, colour=(178, 76, 52))
        canvas.line((-1.0, -1.1), (-1.0 + speed, -1.1), width=0.14, colour=(86, 156, 90))
