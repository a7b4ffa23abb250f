"""What a locomotion task adds to the physics: start, observation, reward, termination. Imports no torch.

Everything is arithmetic on whole columns, element by element: a copy's numbers then never depend on
how many copies there are.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np


class Body(ABC):
    """One kind of robot. Arrays are float64; N copies, Q positions, V velocities, A actions, O observation.

    As in dflex, the reward of a step is that of the observation *before* the step, and the
    termination that of the observation after it.
    """

    model_file: str
    level_velocities: int
    """How many of the first velocities are the root's level ones: forward, then left."""

    @abstractmethod
    def start(self, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Positions [Q] and velocities [V] of a new episode."""

    @abstractmethod
    def observe(self, qpos: np.ndarray, qvel: np.ndarray, action: np.ndarray) -> np.ndarray:
        """Observations [N, O] of positions [N, Q], velocities [N, V] and last actions [N, A]."""

    @abstractmethod
    def reward(self, obs: np.ndarray, action: np.ndarray) -> np.ndarray:
        """Rewards [N] of `action` [N, A] in `obs` [N, O]."""

    @abstractmethod
    def terminated(self, obs: np.ndarray) -> np.ndarray:
        """Whether the episodes that reached `obs` [N, O] end there, bool [N]."""
