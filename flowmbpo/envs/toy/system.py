"""What a toy system is: a differentiable transition, an observation and a picture."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from flowmbpo.spec import TaskInfo


class ToySystem(ABC):
    """A batched, time-limited system in pure torch. S is the width of its state, K that of its noise.

    `transition` is a pure function of state, action and noise, so gradients flow through it where
    the caller asks for them. The simulator around it (`ToyBatch`) never does.
    """

    state_dim: ClassVar[int]
    noise_dim: ClassVar[int] = 0

    def __init__(self, task: TaskInfo) -> None:
        self.task = task

    @abstractmethod
    def start(self, rng: np.random.Generator) -> list[float]:
        """One episode's first state [S]."""

    @abstractmethod
    def transition(
        self, state: Float[Tensor, "B S"], action: Float[Tensor, "B A"], noise: Float[Tensor, "B K"]
    ) -> tuple[Float[Tensor, "B S"], Float[Tensor, " B"]]:
        """One agent step of `task.action_repeat` physics steps: the next state and the summed reward.

        Actions are expected in [-1, 1] and are not clipped here. `noise` holds independent U(0, 1)
        draws, fresh at each agent step; it is [B, 0] for a deterministic system.
        """

    @abstractmethod
    def observe(self, state: Float[Tensor, "B S"]) -> Float[Tensor, "B O"]:
        """What the agent sees of a state; never the state's own memory."""

    def terminates(self, state: Float[Tensor, "B S"]) -> Bool[Tensor, " B"]:
        """Whether the episode ends itself on reaching this state; by default it never does."""
        return torch.zeros(len(state), dtype=torch.bool)

    @abstractmethod
    def draw(self, state: list[float]) -> np.ndarray:
        """A picture of one state [S], uint8 [240, 320, 3]."""
