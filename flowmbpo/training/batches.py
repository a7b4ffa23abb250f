"""Where updates get their windows and start states from: the replay buffer, or a dataset."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from flowmbpo.config.training import TrainingConfig
from flowmbpo.data.batch import Batch
from flowmbpo.data.dataset.sampler import WindowSampler
from flowmbpo.data.replay import ReplayBuffer

Starts = tuple[Float[Tensor, "B O"], Int[Tensor, " B"]]
"""Observations and tasks that an actor update imagines from."""


class ReplayBatches:
    """Windows and start states drawn from the replay buffer that a collector fills."""

    def __init__(self, replay: ReplayBuffer, config: TrainingConfig, generator: torch.Generator) -> None:
        self.replay = replay
        self.config = config
        self.generator = generator

    def windows(self) -> Batch:
        """Drawn uniformly."""
        return self.replay.sample(self.config.wm_batch_size, self.config.horizon, self.generator)

    def starts(self) -> Starts:
        """Drawn uniformly; as many as there are environments, unless the config says otherwise."""
        return self.replay.sample_starts(self.config.actor_batch_size or self.replay.num_envs, self.generator)

    def state_dict(self) -> dict[str, Any]:
        """Nothing of its own."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing to restore."""


class DatasetBatches:
    """The same of a dataset; start states are the first observations of windows of one transition.

    Both go through the dataset in an order of their own, every start once a pass. `replay` holds some of the
    dataset's episodes, to be diagnosed on; nothing is trained on it.
    """

    def __init__(self, windows: WindowSampler, starts: WindowSampler, replay: ReplayBuffer) -> None:
        self._windows, self._starts = windows, starts
        self.replay = replay

    def windows(self) -> Batch:
        """The next of the pass."""
        return self._windows.next()

    def starts(self) -> Starts:
        """The next of the pass."""
        batch = self._starts.next()
        return batch.obs[0], batch.task

    def state_dict(self) -> dict[str, Any]:
        """Where the start states stand; the learner keeps the windows'."""
        return {"starts": self._starts.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore `state_dict`."""
        self._starts.load_state_dict(state["starts"])
