"""A cart on a bounded track with a pole that must be swung up and balanced."""

from __future__ import annotations

import math

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from flowmbpo.envs.toy.system import Canvas, Noise, Pushed, ToySystem, Transition

DT = 0.01  # s
GRAVITY = 9.81  # m/s^2
POLE_MASS = 0.1  # kg
TOTAL_MASS = 1.0 + POLE_MASS  # kg, cart and pole
HALF_LENGTH = 0.5  # m
MAX_FORCE = 10.0  # N
TRACK_END = 1.8  # m
_COUPLING = POLE_MASS * HALF_LENGTH / TOTAL_MASS  # m
_FALLOFF = -2.3  # about log(0.1): a soft bound is worth (1 + 0.1)/2 at its margin


class CartPole(ToySystem):
    """State [x, th, v, w] in m, rad (0 = upright), m/s, rad/s. Observation [x, cos th, sin th, v, w].

    Frictionless cart and uniform pole (Florian 2007), semi-implicit Euler. Reward per physics step:
    the product of upright, centred, slow and small_control, each in [0, 1], after the step.
    """

    state_dim = 4
    units_high = 3.6

    def start(self, rng: np.random.Generator) -> list[float]:
        """Hanging and almost still: x, v, w ~ N(0, .01^2), th ~ pi + N(0, .01^2)."""
        x, angle, v, w = rng.normal(0.0, 0.01, size=4).tolist()
        return [x, math.pi + angle, v, w]

    def transition(self, state: Float[Tensor, "B 4"], action: Float[Tensor, "B 1"], noise: Noise) -> Transition:
        """Four physics steps; the ends of the track stop the cart (inelastic)."""
        x, angle, v, w = state.unbind(dim=-1)
        effort = action[..., 0]
        force = effort * (MAX_FORCE / TOTAL_MASS)
        rod = torch.full_like(x, HALF_LENGTH * 4.0 / 3.0)
        cos = angle.cos()
        visited = []
        for _ in range(self.task.action_repeat):
            sin = angle.sin()
            pull = torch.addcmul(force, w.square(), sin, value=_COUPLING)
            inertia = torch.addcmul(rod, cos, cos, value=-_COUPLING)
            angular = torch.addcmul(GRAVITY * sin, cos, pull, value=-1.0) / inertia
            v = torch.add(v, torch.addcmul(pull, angular, cos, value=-_COUPLING), alpha=DT)
            w = torch.add(w, angular, alpha=DT)
            reached = torch.add(x, v, alpha=DT)
            angle = torch.add(angle, w, alpha=DT)
            x = reached.clamp(-TRACK_END, TRACK_END)
            v = v * (reached == x)
            cos = angle.cos()
            visited.append(torch.stack((x, cos, w)))
        state = torch.stack((x, angle, v, w), dim=-1)
        x, cos, w = torch.stack(visited, dim=1).unbind()  # each of K physics steps in B environments
        upright = (cos + 1.0) / 2.0
        centred = (1.0 + torch.exp((x / 2.0).square() * _FALLOFF)) / 2.0
        slow = (1.0 + torch.exp((w / 5.0).square() * _FALLOFF)) / 2.0
        small_control = 1.0 - effort.square() / 5.0
        return state, (upright * centred * slow).sum(dim=0) * small_control

    def observe(self, state: Float[Tensor, "B 4"]) -> Float[Tensor, "B 5"]:
        x, angle, v, w = state.unbind(dim=-1)
        return torch.stack((x, angle.cos(), angle.sin(), v, w), dim=-1)

    def draw(self, canvas: Canvas, state: list[float]) -> None:
        """The track, the cart and the pole in a window 3.6 m high."""
        x, angle = state[0], state[1]
        tip = (x + 2 * HALF_LENGTH * math.sin(angle), 2 * HALF_LENGTH * math.cos(angle))
        canvas.line((-TRACK_END, 0.0), (TRACK_END, 0.0), width=0.03, colour=(120, 120, 120))
        canvas.line((x - 0.15, 0.0), (x + 0.15, 0.0), width=0.2, colour=(40, 40, 40))
        canvas.line((x, 0.0), tip, width=0.07, colour=(178, 76, 52))


class PushedCartPole(Pushed, CartPole):
    """`CartPole` under pushes of 1.5 rad/s."""

    size = 1.5


class HiddenCartPole(CartPole):
    """`CartPole` of which only [x, cos th, sin th] is seen."""

    def observe(self, state: Float[Tensor, "B 4"]) -> Float[Tensor, "B 3"]:
        return super().observe(state)[..., :3].clone()
