"""Pendulum and cart-pole whose velocities are not observed."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from flowmbpo.envs.toy.cartpole import CartPole
from flowmbpo.envs.toy.pendulum import Pendulum


class HiddenPendulum(Pendulum):
    """`Pendulum` of which only [cos th, sin th] is seen."""

    def observe(self, state: Float[Tensor, "B 2"]) -> Float[Tensor, "B 2"]:
        """[cos th, sin th]."""
        angle = state[..., 0]
        return torch.stack((angle.cos(), angle.sin()), dim=-1)


class HiddenCartPole(CartPole):
    """`CartPole` of which only [x, cos th, sin th] is seen."""

    def observe(self, state: Float[Tensor, "B 4"]) -> Float[Tensor, "B 3"]:
        """[x, cos th, sin th]."""
        x, angle = state[..., 0], state[..., 1]
        return torch.stack((x, angle.cos(), angle.sin()), dim=-1)
