"""Stepping a simulator with gradients, for exact derivatives of what happens in it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from jaxtyping import Bool, Float
from torch import Tensor


@dataclass(frozen=True)
class DifferentiableStep:
    """What an action did. `obs` and `reward` carry gradient to the actions and to the states before."""

    obs: Float[Tensor, "N O"]
    reward: Float[Tensor, " N"]
    terminated: Bool[Tensor, " N"]


class DifferentiableCopies(ABC):
    """N copies that go on from the state they were taken at; the environment they come from is not moved.

    No episode restarts and no time limit is kept: the caller masks what lies behind an end.
    """

    @abstractmethod
    def observe(self) -> Float[Tensor, "N O"]:
        """The current observations."""

    @abstractmethod
    def step(self, action: Float[Tensor, "N A"]) -> DifferentiableStep:
        """One agent step with actions in [-1, 1]."""
