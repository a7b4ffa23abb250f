"""Learning from a dataset alone: the world model, the policy, or both; nothing is collected."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from flowmbpo.config.training import TrainingConfig
from flowmbpo.data.batch import Batch
from flowmbpo.data.replay import ReplayBuffer
from flowmbpo.models.agent import Agent
from flowmbpo.training.trainer import Dump, Trainer, Warmstart, WindowSource, means


class OfflineTrainer(Trainer):
    """One epoch is `rounds` rounds of updates: PWM's pretraining, or a policy on a frozen world model.

    `windows` hands out the model's windows, `starts` windows of one transition whose first observations
    the actor imagines from; both go through the dataset in an order of their own, every start once a pass.
    `replay` holds some of the dataset's episodes, to be diagnosed on; nothing is trained on it.
    """

    def __init__(
        self,
        agent: Agent,
        config: TrainingConfig,
        *,
        windows: WindowSource,
        starts: WindowSource,
        replay: ReplayBuffer,
        seed: int,
        device: torch.device,
        dump: Dump,
        warmstart: Warmstart | None = None,
    ) -> None:
        super().__init__(agent, config, seed=seed, device=device, dump=dump, windows=windows, warmstart=warmstart)
        self.starts = starts
        self.replay = replay

    def start(self) -> None:
        """The warm start alone, where there is one."""
        self._warmstart(self._model_batch)
        self.started = True

    def run_epoch(self) -> dict[str, float]:
        """The rounds of updates. Returns their metrics."""
        if not self.started:
            self.start()
        rates = self._set_learning_rates()
        metrics = means(self._rounds())
        self.epoch += 1
        return metrics | rates | {"nonfinite/count": float(self.nonfinite)}

    def close(self) -> None:
        """Stop both readers."""
        super().close()
        self.starts.close()

    def _model_batch(self) -> Batch:
        assert self.windows is not None
        return self.windows.next()

    def _starts(self) -> tuple[Float[Tensor, "B O"], Int[Tensor, " B"]]:
        batch = self.starts.next()
        return batch.obs[0], batch.task

    def state_dict(self) -> dict[str, Any]:
        """The trainer's own state, and where the start states stand."""
        return super().state_dict() | {"starts": self.starts.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore `state_dict`."""
        super().load_state_dict(state)
        self.starts.load_state_dict(state["starts"])
