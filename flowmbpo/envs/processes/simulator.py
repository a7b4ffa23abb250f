"""What a worker process steps: one copy of a task, in numpy. Imports no torch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from flowmbpo.envs.contract import ABSURD


@dataclass(frozen=True)
class Outcome:
    """What one agent step gave beside the observation. `success` is nan where the task defines none."""

    reward: float
    terminated: bool
    success: float


class Simulator(ABC):
    """One copy of a task. Observations are written into float32 rows [O] that the caller owns.

    An episode is determined by the seed that it is reset with and by its actions: saving and
    rendering replay it. EnvironmentFailure, and numbers that are not finite or at least `absurd` in
    size, break the episode: the next one begins. Any other error may be raised as it is, and ends the
    whole environment.
    """

    obs_dim: int
    action_dim: int
    absurd: float = ABSURD

    @abstractmethod
    def reset(self, seed: np.random.SeedSequence, obs: np.ndarray) -> None:
        """Start an episode."""

    @abstractmethod
    def step(self, action: np.ndarray, obs: np.ndarray) -> Outcome:
        """One agent step, all repeats, with an action in [-1, 1], float32 [A]."""

    @abstractmethod
    def describe(self) -> str:
        """The state that the last step started from, in one line; after `reset`, the one it gave."""

    @abstractmethod
    def render(self) -> np.ndarray:
        """The current frame, uint8 [height, width, 3]."""


SimulatorFactory = Callable[[], Simulator]
"""Makes one copy; sent to worker processes, so it must pickle."""
