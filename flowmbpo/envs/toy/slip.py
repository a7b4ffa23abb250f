"""A runner that may slip when it is fast, and then lies for a while."""

from __future__ import annotations

import math

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from flowmbpo.envs.toy.canvas import Canvas
from flowmbpo.envs.toy.logistic import logistic
from flowmbpo.envs.toy.system import ToySystem

GAIN = 0.15  # of speed, at full action
MAX_SPEED = 2.0
MAX_RISK, RISKY_SPEED, RISK_WIDTH = 0.4, 1.2, 0.08
RECOVERY = 0.05  # of spin, each step on the ground: 20 steps
START_SPEED = 0.2
UPRIGHT, UPRIGHT_WIDTH = 0.02, 0.01


class Slip(ToySystem):
    """State and observation [v, b]: speed, and the spin left from a slip (0 = on its feet).

    On its feet (b <= 0) it slips with probability .4 sigmoid((v - 1.2)/.08): v' = 0, b' = 1; otherwise
    v' = clip(v + .15 a, 0, 2). While b > 0, v' = 0 and b' = max(b - c, 0). Reward
    .5 v' sigmoid((.02 - b')/.01). The system's description fixes neither c nor the start nor what is
    observed; c = .05 and an almost standing start are where the best constant speed earns about
    the 33.5 per 100 steps that were published for it.
    """

    state_dim = 2
    noise_dim = 1

    def start(self, rng: np.random.Generator) -> list[float]:
        """v ~ U(0, .2), b = 0."""
        return [rng.uniform(0.0, START_SPEED), 0.0]

    def transition(
        self, state: Float[Tensor, "B 2"], action: Float[Tensor, "B 1"], noise: Float[Tensor, "B 1"]
    ) -> tuple[Float[Tensor, "B 2"], Float[Tensor, " B"]]:
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

    def observe(self, state: Float[Tensor, "B 2"]) -> Float[Tensor, "B 2"]:
        """[v, b]."""
        return state.clone()

    def draw(self, state: list[float]) -> np.ndarray:
        """The runner, leaning with its spin, over a bar as long as its speed; 3 units high."""
        canvas = Canvas(units_high=3.0)
        speed, spin = state
        canvas.line((-1.8, -0.6), (1.8, -0.6), width=0.03, colour=(120, 120, 120))
        lean = spin * math.pi / 2
        head = (-0.8 + math.sin(lean), -0.5 + math.cos(lean))
        canvas.line((-0.8, -0.5), head, width=0.12, colour=(40, 40, 40))
        canvas.disc(head, radius=0.14, colour=(178, 76, 52))
        canvas.line((-1.0, -1.1), (-1.0 + speed, -1.1), width=0.14, colour=(86, 156, 90))
        return canvas.frame()
