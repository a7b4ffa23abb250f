"""What `BatchVectorEnv` steps: N copies of one task in one batch, in this process."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float
from torch import Tensor

from flowmbpo.envs.contract import ABSURD
from flowmbpo.envs.differentiable import DifferentiableCopies
from flowmbpo.spec import TaskInfo


@dataclass(frozen=True)
class BatchOutcome:
    """What one agent step gave, per copy. `success` is None where the task defines none."""

    obs: Float[Tensor, "N O"]
    reward: Float[Tensor, " N"]
    terminated: Bool[Tensor, " N"]
    success: Float[Tensor, " N"] | None = None


class BatchSimulator(ABC):
    """N copies of `task`. It owns the physics; episodes, time limits and resets are its caller's.

    An episode is determined by the seed that it is started with and by its actions, whatever the
    other copies do. All tensors are float32 on the CPU. Errors of the simulator may be raised as they are;
    copies whose numbers are broken are reported by their numbers (not finite, or at least `absurd` in size)
    and restarted. A `start` that raises EnvironmentFailure is repeated copy by copy; those that raise it
    again go on to their next episodes. Any other error ends the whole environment.
    """

    task: TaskInfo
    num_envs: int
    absurd: float = ABSURD

    @abstractmethod
    def start(self, indices: Sequence[int], seeds: Sequence[np.random.SeedSequence]) -> None:
        """Start an episode in each of these copies; the others are left where they are."""

    @abstractmethod
    def observe(self) -> Float[Tensor, "N O"]:
        """The current observations: after `start` those of the new episodes. A fresh tensor."""

    @abstractmethod
    def step(self, action: Float[Tensor, "N A"]) -> BatchOutcome:
        """One agent step of every copy, with actions that are finite and in [-1, 1]."""

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """Everything that the next steps depend on: tensors, numbers, strings, lists, dicts only."""

    @abstractmethod
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Return to a saved state, bit for bit."""

    @abstractmethod
    def describe(self, index: int) -> str:
        """The state of one copy that its last step started from, in one line; after `start`, the one it gave.

        With the step's action it says why the numbers broke, which the state after them no longer does.
        """

    @abstractmethod
    def render(self, index: int) -> np.ndarray:
        """The current frame of one copy, uint8 [height, width, 3].

        Raises EnvironmentUnavailableError, saying what to install, where nothing can draw.
        """

    def differentiable(self) -> DifferentiableCopies | None:
        """The copies as they are now, to be stepped with gradients; None where the simulator has none."""
        return None

    def cpu_seconds(self) -> float:
        """CPU time used so far by processes other than this one; 0 where there are none."""
        return 0.0

    def close(self) -> None:  # noqa: B027  not abstract: most hold nothing
        """Release threads, processes and memory; safe to call twice."""
