"""Pendulum and cart-pole under rare random pushes."""

from __future__ import annotations

from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from flowmbpo.envs.toy.cartpole import CartPole
from flowmbpo.envs.toy.pendulum import Pendulum


def impulse(u: Float[Tensor, " B"], rate: float, size: float, skew: float) -> Float[Tensor, " B"]:
    """The push that each u ~ U(0, 1) stands for: none, +size or -size.

    One comes with probability `rate`; it is positive with probability (1 + skew)/2, so `skew`,
    in [-1, 1], is the mean sign of a push.
    """
    positive = u < rate * (1.0 + skew) / 2.0
    happens = u < rate
    return size * (2.0 * positive.to(u.dtype) - happens.to(u.dtype))


class PushedPendulum(Pendulum):
    """`Pendulum` whose angular velocity a push changes by 2 rad/s with probability .04 per agent step.

    Three pushes in four are positive. The push comes before the step's physics, which limits the speed.
    """

    noise_dim = 1
    rate: ClassVar[float] = 0.04
    size: ClassVar[float] = 2.0  # rad/s
    skew: ClassVar[float] = 0.5

    def transition(
        self, state: Float[Tensor, "B 2"], action: Float[Tensor, "B 1"], noise: Float[Tensor, "B 1"]
    ) -> tuple[Float[Tensor, "B 2"], Float[Tensor, " B"]]:
        """The push, then the pendulum's step."""
        angle, speed = state.unbind(dim=-1)
        speed = speed + impulse(noise[..., 0], self.rate, self.size, self.skew)
        return super().transition(torch.stack((angle, speed), dim=-1), action, noise)


class PushedCartPole(CartPole):
    """`CartPole` whose pole's angular velocity a push changes by 1.5 rad/s with probability .04 per agent step.

    Three pushes in four are positive. The push comes before the step's physics.
    """

    noise_dim = 1
    rate: ClassVar[float] = 0.04
    size: ClassVar[float] = 1.5  # rad/s
    skew: ClassVar[float] = 0.5

    def transition(
        self, state: Float[Tensor, "B 4"], action: Float[Tensor, "B 1"], noise: Float[Tensor, "B 1"]
    ) -> tuple[Float[Tensor, "B 4"], Float[Tensor, " B"]]:
        """The push, then the cart-pole's step."""
        x, angle, v, w = state.unbind(dim=-1)
        w = w + impulse(noise[..., 0], self.rate, self.size, self.skew)
        return super().transition(torch.stack((x, angle, v, w), dim=-1), action, noise)
