"""What a toy system is: a differentiable transition, an observation and a picture."""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np
from jaxtyping import Float
from torch import Tensor

from flowmbpo.envs.spec import TaskInfo


class ToySystem(ABC):
    """A batched, time-limited system in pure torch. S is the width of its state.

    `transition` is a pure function, so gradients flow through it where the caller asks for them.
    The vector environment around it (`ToyVectorEnv`) never does.
    """

    def __init__(self, task: TaskInfo) -> None:
        self.task = task

    @abstractmethod
    def start(self, rng: np.random.Generator) -> list[float]:
        """One episode's first state [S]."""

    @abstractmethod
    def transition(
        self, state: Float[Tensor, "B S"], action: Float[Tensor, "B A"]
    ) -> tuple[Float[Tensor, "B S"], Float[Tensor, " B"]]:
        """One agent step of `task.action_repeat` physics steps: the next state and the summed reward.

        Actions are expected in [-1, 1] and are not clipped here.
        """

    @abstractmethod
    def observe(self, state: Float[Tensor, "B S"]) -> Float[Tensor, "B O"]:
        """What the agent sees of a state."""

    @abstractmethod
    def draw(self, state: list[float]) -> np.ndarray:
        """A picture of one state [S], uint8 [240, 320, 3]."""
