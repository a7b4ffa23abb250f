"""N copies of a toy system in one batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from flowmbpo.envs.batch.simulator import BatchOutcome, BatchSimulator
from flowmbpo.envs.differentiable import DifferentiableCopies, DifferentiableStep
from flowmbpo.envs.toy.system import ToySystem


class ToyBatch(BatchSimulator):
    """N copies of `system`.

    Each episode's generator draws its first state and then the noise of all its L agent steps,
    so what happens in it depends on nothing but its seed and its actions.
    """

    def __init__(self, system: ToySystem, num_envs: int) -> None:
        self.system = system
        self.task = system.task
        self.num_envs = num_envs
        self._rows = torch.arange(num_envs)
        self._state = torch.zeros(num_envs, system.state_dim)
        self._before: Tensor | None = None  # the state that the last step started from; none since `start`
        self._noise = torch.zeros(num_envs, self.task.episode_length, system.noise_dim)
        self._elapsed = torch.zeros(num_envs, dtype=torch.int64)

    def start(self, indices: Sequence[int], seeds: Sequence[np.random.SeedSequence]) -> None:
        states, noise = [], []
        for seed in seeds:
            rng = np.random.default_rng(seed)
            states.append(self.system.start(rng))
            if self.system.noise_dim:
                noise.append(rng.random(self._noise.shape[1:], dtype=np.float32))
        rows = torch.as_tensor(indices)
        self._state = self._state.index_copy(0, rows, torch.tensor(states, dtype=torch.float32))
        self._before = None
        self._elapsed[rows] = 0
        if noise:
            self._noise[rows] = torch.from_numpy(np.stack(noise))

    def observe(self) -> Float[Tensor, "N O"]:
        return self.system.observe(self._state)

    def step(self, action: Float[Tensor, "N A"]) -> BatchOutcome:
        """Past the time limit there is no noise left: stepping on raises IndexError."""
        # Without noise any step's slice is the same empty tensor: the gather would only cost time.
        noise = self._noise[self._rows, self._elapsed] if self.system.noise_dim else self._noise[:, 0]
        self._before = self._state
        self._state, reward = self.system.transition(self._state, action, noise)
        self._elapsed += 1
        return BatchOutcome(self.observe(), reward, self.system.terminates(self._state))

    def state_dict(self) -> dict[str, Any]:
        return {"state": self._state.clone(), "noise": self._noise.clone(), "elapsed": self._elapsed.clone()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._state = state["state"].clone()
        self._before = None
        self._noise = state["noise"].clone()
        self._elapsed = state["elapsed"].clone()

    def differentiable(self) -> DifferentiableCopies:
        return DifferentiableToy(self.system, self._state.clone(), self._noise, self._elapsed.clone())

    def describe(self, index: int) -> str:
        """The state that the last step started from, or that of now where none has been taken since a start."""
        stepped = self._before is not None
        state = self._state if self._before is None else self._before
        step = int(self._elapsed[index]) - stepped
        return f"{self.task.name}: before the step: {step} steps done, state {state[index].tolist()}"

    def render(self, index: int) -> np.ndarray:
        return self.system.draw(self._state[index].tolist())


class DifferentiableToy(DifferentiableCopies):
    """`system` from `state` on, under the noise that its episodes have drawn. In float64 where the state is."""

    def __init__(
        self,
        system: ToySystem,
        state: Float[Tensor, "N S"],
        noise: Float[Tensor, "N L K"],
        elapsed: Int[Tensor, " N"],
    ) -> None:
        self._system = system
        self._state = state
        self._noise = noise
        self._elapsed = elapsed

    def observe(self) -> Float[Tensor, "N O"]:
        return self._system.observe(self._state)

    def step(self, action: Float[Tensor, "N A"]) -> DifferentiableStep:
        """Past the time limit there is no noise left: stepping on raises IndexError."""
        noise = (
            self._noise[torch.arange(len(self._state)), self._elapsed] if self._system.noise_dim else self._noise[:, 0]
        )
        self._state, reward = self._system.transition(self._state, action, noise)
        self._elapsed = self._elapsed + 1
        return DifferentiableStep(self.observe(), reward, self._system.terminates(self._state))
