"""A vector environment over one batch simulator, in this process; and what such a simulator is."""

from __future__ import annotations

import weakref
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from flowmbpo.envs.contract import BatchOutcome, DifferentiableEnvs
from flowmbpo.envs.episodes import ABSURD
from flowmbpo.envs.episodic import EpisodicEnv, simulator_errors
from flowmbpo.spec import EnvSpec, TaskInfo


class BatchSimulator(ABC):
    """N environments of `task`. It owns the physics; episodes, time limits and resets are its caller's.

    An episode is determined by the seed that it is started with and by its actions, whatever the other environments
    do. All tensors are float32 on the CPU. Environments whose numbers are broken (not finite, or at least `absurd`
    in size) are restarted; any error may be raised as it is and ends them all.
    """

    task: TaskInfo
    num_envs: int
    absurd: float = ABSURD

    @abstractmethod
    def start(self, indices: Sequence[int], seeds: Sequence[np.random.SeedSequence]) -> Mapping[int, str] | None:
        """Start an episode in each of these environments; the others are left where they are.

        Returns those that could not, and why: they go on to their next episodes. Nothing where all did.
        """

    @abstractmethod
    def observe(self) -> Float[Tensor, "N O"]:
        """The current observations: after `start` those of the new episodes. A fresh tensor."""

    @abstractmethod
    def step(self, action: Float[Tensor, "N A"]) -> BatchOutcome:
        """One agent step of every environment, with actions that are finite and in [-1, 1]."""

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """Everything that the next steps depend on: tensors, numbers, strings, lists, dicts only."""

    @abstractmethod
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Return to a saved state, bit for bit."""

    @abstractmethod
    def describe(self, index: int) -> str:
        """The state of one environment that its last step started from, in one line; after `start`, the one it gave."""

    @abstractmethod
    def render(self, index: int) -> np.ndarray:
        """The current frame of one environment, uint8 [height, width, 3].

        Raises EnvironmentUnavailableError, saying what to install, where nothing can draw.
        """

    def differentiable(self) -> DifferentiableEnvs | None:
        """The environments as they are now, to be stepped with gradients; None where the simulator has none."""
        return None

    def close(self) -> None:  # noqa: B027  not abstract: most hold nothing
        """Release threads, processes and memory; safe to call twice."""


class BatchVectorEnv(EpisodicEnv):
    """The contract around a `BatchSimulator`, whose own state is what is saved."""

    def __init__(self, simulator: BatchSimulator, spec: EnvSpec | None = None) -> None:
        """`spec` is the task's own but for a set of one task, which has a name of its own."""
        super().__init__(EnvSpec((simulator.task,)) if spec is None else spec, [0] * simulator.num_envs)
        self.simulator = simulator
        self.absurd = simulator.absurd
        self._finalizer = weakref.finalize(self, simulator.close)

    def state_dict(self) -> dict[str, Any]:
        """The simulator's state; the actions are there for a later fault to be replayed by."""
        self._require_reset()
        with simulator_errors(self.spec.label):
            return {**self._book.state_dict(), "simulator": self.simulator.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> Float[Tensor, "N O"]:
        """Raises ValueError where the state is of another task or another number of environments."""
        self._require_open()
        self._book.load_state_dict(state)
        with self._failures_close():
            self.simulator.load_state_dict(state["simulator"])
            return self.simulator.observe()

    def render(self, index: int = 0) -> np.ndarray:
        self._require_reset()
        with simulator_errors(self.spec.label):
            return self.simulator.render(index)

    def differentiable(self) -> DifferentiableEnvs | None:
        self._require_reset()
        return self.simulator.differentiable()

    def _start(self, indices: Sequence[int], seeds: Sequence[np.random.SeedSequence]) -> Mapping[int, str]:
        return self.simulator.start(indices, seeds) or {}

    def _observe(self) -> Float[Tensor, "N O"]:
        return self.simulator.observe()

    def _advance(self, action: np.ndarray) -> BatchOutcome:
        return self.simulator.step(torch.from_numpy(action))

    def _describe(self, index: int) -> str:
        return self.simulator.describe(index)
