"""Policies that need no learning, for recording data. Letters: N environments, A actions."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from jaxtyping import Bool, Float
from torch import Tensor


class Behaviour(ABC):
    """Acts in N environments of one task, with A actions of its own."""

    def __init__(self, shape: tuple[int, int], generator: torch.Generator) -> None:
        self._shape, self._generator = shape, generator  # N, A

    @abstractmethod
    def act(self, obs: Float[Tensor, "N O"], first: Bool[Tensor, " N"]) -> Float[Tensor, "N A"]:
        """Actions, to be clipped to [-1, 1]; `first` marks the environments whose episode begins with this step."""


class RandomBehaviour(Behaviour):
    """Uniform in [-1, 1], drawn anew at every step."""

    def act(self, obs: Float[Tensor, "N O"], first: Bool[Tensor, " N"]) -> Float[Tensor, "N A"]:
        return torch.empty(self._shape).uniform_(-1.0, 1.0, generator=self._generator)


class NoiseBehaviour(Behaviour):
    """Smooth noise, of another kind in every episode: it goes places that uniform noise averages out.

    Every action of an episode is a sine plus an Ornstein-Uhlenbeck process, clipped to [-1, 1]::

        a_t = share amplitude sin(2 pi f t + phase) + (1 - share) (mean + x_t)
        x_{t+1} = (1 - theta) x_t + std sqrt(1 - (1 - theta)^2) eps,    eps ~ N(0, 1), x_0 ~ N(0, std^2)

    drawn per episode and action: share ~ U(0, 1), amplitude ~ U(0.3, 1.5), f log-uniform in [0.005, 0.25] per step,
    phase ~ U(0, 2 pi), mean ~ N(0, 0.3^2), std ~ U(0.2, 1), theta log-uniform in [0.02, 1]. The scaling by
    1 - (1 - theta)^2 keeps the standard deviation of x at std.
    """

    def __init__(self, shape: tuple[int, int], generator: torch.Generator) -> None:
        super().__init__(shape, generator)
        self._drawn = torch.zeros(7, *shape)  # share, amplitude, f, phase, mean, std, theta
        self._state = torch.zeros(shape)
        self._elapsed = torch.zeros(shape[0], 1)

    def act(self, obs: Float[Tensor, "N O"], first: Bool[Tensor, " N"]) -> Float[Tensor, "N A"]:
        if first.any():
            self._begin(first[:, None])
        share, amplitude, frequency, phase, mean, std, theta = self._drawn
        sine = amplitude * torch.sin(2 * torch.pi * frequency * self._elapsed + phase)
        action: Tensor = (share * sine + (1 - share) * (mean + self._state)).clamp(-1.0, 1.0)
        kept = 1 - theta
        self._state = kept * self._state + std * (1 - kept**2).sqrt() * self._normal()
        self._elapsed += 1
        return action

    def _begin(self, first: Bool[Tensor, "N 1"]) -> None:
        """New parameters where an episode begins; drawn for all environments, so that draws do not depend on which."""
        share, amplitude = self._uniform(0.0, 1.0), self._uniform(0.3, 1.5)
        frequency, phase = self._log_uniform(0.005, 0.25), self._uniform(0.0, 2 * math.pi)
        mean, std, theta = 0.3 * self._normal(), self._uniform(0.2, 1.0), self._log_uniform(0.02, 1.0)
        drawn = torch.stack((share, amplitude, frequency, phase, mean, std, theta))
        self._state = torch.where(first, std * self._normal(), self._state)
        self._drawn = torch.where(first, drawn, self._drawn)
        self._elapsed = torch.where(first, 0.0, self._elapsed)

    def _normal(self) -> Tensor:
        return torch.randn(self._shape, generator=self._generator)

    def _uniform(self, low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(self._shape, generator=self._generator)

    def _log_uniform(self, low: float, high: float) -> Tensor:
        return self._uniform(math.log(low), math.log(high)).exp()
