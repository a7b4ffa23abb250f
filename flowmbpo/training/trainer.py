"""What every trainer shares: the agent, its optimisers, the rounds of updates, and their state."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import torch
from jaxtyping import Float, Int
from torch import Tensor

from flowmbpo.config.training import TrainingConfig
from flowmbpo.data.batch import Batch
from flowmbpo.data.replay import ReplayBuffer
from flowmbpo.errors import NonFiniteError
from flowmbpo.models.agent import Agent
from flowmbpo.spec import EnvSpec
from flowmbpo.training.horizon import trusted_steps
from flowmbpo.training.optimiser import GuardedOptimiser
from flowmbpo.training.schedule import learning_rate
from flowmbpo.training.updates import UpdateResult, update_actor, update_critic, update_model

Dump = Callable[[str, Mapping[str, Tensor | str | int]], None]
"""Receives a name for what broke (an update that was not finite, an episode), and all that reproduces it."""

Sums = dict[str, list[Tensor]]
GENERATORS = ("exploration", "replay", "imagination", "model", "critic")
PRETRAINING_SLICE = 200
"""Model updates of a pretraining that are done between two looks at the clock, the disk and the stop request."""


class WindowSource(Protocol):
    """A dataset's windows, handed out in an order of its own that its state describes."""

    def next(self) -> Batch:
        """The next batch."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Where it stands."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        ...

    def close(self) -> None:
        """Let its threads go."""
        ...


Warmstart = Callable[[Callable[[], Batch], torch.Generator], dict[str, Any]]
"""Trains what could not be copied from the initial checkpoint, on batches of real windows. Returns its figures."""


class Trainer(ABC):
    """Owns the agent and its optimisers between epochs; where the windows come from is the subclass's.

    Every source of randomness is one of `generators`, seeded from `seed`: equal seeds, device and thread
    count give bit-equal runs on CPU. `windows` are a dataset's, for an offline run or for pretraining;
    `warmstart` runs once, before the first update, on such windows or where there are none on replayed ones.
    """

    replay: ReplayBuffer

    def __init__(
        self,
        agent: Agent,
        config: TrainingConfig,
        *,
        seed: int,
        device: torch.device,
        dump: Dump,
        windows: WindowSource | None = None,
        warmstart: Warmstart | None = None,
    ) -> None:
        self.agent = agent.to(device)
        self.spec: EnvSpec = agent.spec
        self.config = config
        self.device = device
        self.dump = dump
        self.windows = windows
        self.warmstart = warmstart
        self.warmstarted: dict[str, Any] = {}
        self.epoch = 0
        self.env_steps = 0
        self.nonfinite = 0
        self.faults = 0
        self.updates = 0
        self.pretrained = 0
        self.started = False
        self.optimisers = self._make_optimisers()
        self.generators = {
            name: torch.Generator(device).manual_seed(seed * len(GENERATORS) + offset)
            for offset, name in enumerate(GENERATORS)
        }

    def _make_optimisers(self) -> dict[str, GuardedOptimiser]:
        config = self.config
        return {
            "model": GuardedOptimiser(
                self.agent.world_model.parameters(),
                lr=config.model_lr,
                betas=config.model_betas,
                weight_decay=config.weight_decay,
                clip=config.clip.model,
            ),
            "actor": GuardedOptimiser(
                self.agent.actor.parameters(),
                lr=config.actor_lr,
                betas=config.betas,
                weight_decay=0.0,
                clip=config.clip.actor,
            ),
            "critic": GuardedOptimiser(
                self.agent.critic.parameters(),
                lr=config.critic_lr,
                betas=config.betas,
                weight_decay=0.0,
                clip=config.clip.critic,
            ),
        }

    @abstractmethod
    def run_epoch(self) -> dict[str, float]:
        """One epoch; returns its metrics."""

    @abstractmethod
    def start(self) -> None:
        """What comes once, before the first epoch."""

    @abstractmethod
    def _model_batch(self) -> Batch:
        """The windows of the next model update."""

    @abstractmethod
    def _starts(self) -> tuple[Float[Tensor, "B O"], Int[Tensor, " B"]]:
        """Observations and tasks that the next actor update imagines from."""

    @property
    def learns_model(self) -> bool:
        """Whether epochs update the world model."""
        return self.config.learn != "policy"

    @property
    def learns_policy(self) -> bool:
        """Whether epochs update actor and critic."""
        return self.config.learn != "model"

    @property
    def pretraining_left(self) -> int:
        """Model updates on the dataset that are still to come before the first epoch."""
        return max(self.config.pretrain_steps - self.pretrained, 0)

    @property
    def saved_replay(self) -> dict[str, Tensor | int] | None:
        """The buffer that goes beside a checkpoint; None before there is one."""
        return self.replay.state_dict() if self.started else None

    def cpu_seconds(self) -> float:
        """CPU time of other processes that work for the training."""
        return 0.0

    def pretrain(self) -> dict[str, float]:
        """The next slice of the pretraining: model updates on the dataset, at the initial learning rate."""
        assert self.windows is not None, "pretraining without a dataset"
        windows = self.windows
        if self.pretrained == 0:
            self._warmstart(windows.next)
        self.optimisers["model"].set_lr(self.config.model_lr)
        sums: Sums = {}
        for _ in range(min(self.pretraining_left, PRETRAINING_SLICE)):
            self._collect(sums, self._model_update(windows.next()))
            self.pretrained += 1
        return {"pretrain/updates": float(self.pretrained)} | means(sums)

    def close(self) -> None:
        """Let threads and processes go."""
        if self.windows is not None:
            self.windows.close()

    def _warmstart(self, batches: Callable[[], Batch]) -> None:
        if self.warmstart is not None and not self.warmstarted:
            self.warmstarted = self.warmstart(batches, self.generators["model"])
        self.warmstart = None  # it holds the checkpoint that the run began with

    def _rounds(self) -> Sums:
        """The rounds of updates of one epoch: their metrics, one tensor per update."""
        sums: Sums = {}
        for _ in range(self.config.rounds):
            if self.learns_model:
                for _ in range(self.config.wm_iterations):
                    self._collect(sums, self._model_update())
            if self.learns_policy:
                self._collect(sums, self._policy_update())
        return sums

    @staticmethod
    def _collect(sums: Sums, metrics: dict[str, Tensor]) -> None:
        for name, value in metrics.items():
            sums.setdefault(name, []).append(value)

    def _set_learning_rates(self) -> dict[str, float]:
        config = self.config
        initial = {"model": config.model_lr, "actor": config.actor_lr, "critic": config.critic_lr}
        rates = {}
        for name in self._learning():
            rate = learning_rate(initial[name], config.final_lr, self.epoch, config.epochs, config.lr_schedule)
            self.optimisers[name].set_lr(rate)
            rates[f"lr/{name}"] = rate
        return rates

    def _learning(self) -> list[str]:
        return ["model"] * self.learns_model + ["actor", "critic"] * self.learns_policy

    def _model_update(self, batch: Batch | None = None) -> dict[str, Tensor]:
        windows = self._model_batch() if batch is None else batch
        result, losses = update_model(
            self.agent, windows, self.optimisers["model"], self.config, self.generators["model"]
        )
        self._check("model", result, lambda: vars(windows))
        return {
            "loss/dynamics": losses.dynamics.detach(),
            "loss/reward": losses.reward.detach(),
            "grad_norm/model": result.grad_norm,
        }

    def _trusted_windows(self, horizon: int) -> Batch:
        """Windows on which an adaptive horizon is measured."""
        return self.replay.sample(self.config.wm_batch_size, horizon, self.generators["replay"])

    def _actor_horizon(self) -> int:
        """Steps that the next actor update imagines.

        An adaptive one is measured on windows drawn from the replay generator, and on nothing that was
        measured before: a resumed run decides as the uninterrupted one does.
        """
        config, longest = self.config, self.config.longest_actor_horizon
        if config.adaptive_horizon is None:
            return longest
        batch = self._trusted_windows(longest)
        steps = trusted_steps(self.agent.world_model, batch, config.adaptive_horizon.tolerance)
        return max(config.adaptive_horizon.minimum, int(steps))

    def _policy_update(self) -> dict[str, Tensor]:
        agent, config = self.agent, self.config
        horizon = self._actor_horizon()
        obs, task = self._starts()
        with torch.no_grad():  # the actor learns through the model, not through the encoder or the embedding
            context = agent.world_model.context(task)
            start = agent.world_model.encode(obs, context)
        result, objective = update_actor(
            agent, start, context, self.optimisers["actor"], config, self.generators["imagination"], horizon
        )
        self._check("actor", result, lambda: {"obs": obs, "task": task})
        metrics = {"loss/actor": result.loss, "grad_norm/actor": result.grad_norm}
        if config.actor_horizon is not None or config.adaptive_horizon is not None:
            metrics["horizon/actor"] = torch.tensor(float(horizon))
        if not result.stepped:
            return metrics  # the critic's targets come from the same rollout
        results = update_critic(agent, objective, self.optimisers["critic"], config, self.generators["critic"])
        for critic_result in results:
            self._check("critic", critic_result, lambda: {"obs": obs, "task": task})
        metrics["loss/critic"] = torch.stack([r.loss for r in results]).mean()
        metrics["grad_norm/critic"] = torch.stack([r.grad_norm for r in results]).mean()
        return metrics

    def _check(self, name: str, result: UpdateResult, tensors: Callable[[], dict[str, Tensor]]) -> None:
        self.updates += 1
        if result.stepped:
            return
        self.nonfinite += 1
        self.dump(f"epoch{self.epoch:06d}-{name}-{self.nonfinite}", tensors())
        if self.nonfinite > self.config.max_nonfinite:
            raise NonFiniteError(
                f"{self.nonfinite} non-finite updates (the last: {name}, epoch {self.epoch}); "
                f"training.max_nonfinite allows {self.config.max_nonfinite}. No optimiser stepped on them; "
                "their batches are in the run's nonfinite/ folder. Lower the learning rates or the clips."
            )

    def state_dict(self) -> dict[str, Any]:
        """All that a bit-equal continuation needs, save the replay buffer and the generators."""
        return {
            "agent": self.agent.state_dict(),
            "optimisers": {name: optimiser.state_dict() for name, optimiser in self.optimisers.items()},
            "windows": None if self.windows is None else self.windows.state_dict(),
            "warmstarted": dict(self.warmstarted),
            "pretrained": self.pretrained,
            "started": self.started,
            "epoch": self.epoch,
            "env_steps": self.env_steps,
            "updates": self.updates,
            "nonfinite": self.nonfinite,
            "faults": self.faults,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore `state_dict` (the replay buffer and generators are restored by the caller)."""
        self.agent.load_state_dict(state["agent"])
        for name, optimiser in self.optimisers.items():
            optimiser.load_state_dict(state["optimisers"][name])
        if self.windows is not None:
            self.windows.load_state_dict(state["windows"])
        self.warmstarted = dict(state.get("warmstarted", {}))  # earlier checkpoints knew no warm start
        self.pretrained = int(state.get("pretrained", 0))
        self.started = bool(state["started"])
        self.epoch = int(state["epoch"])
        self.env_steps = int(state["env_steps"])
        self.updates = int(state["updates"])
        self.nonfinite = int(state["nonfinite"])
        self.faults = int(state.get("faults", 0))  # checkpoints of 0.1 do not count them


def means(sums: Sums) -> dict[str, float]:
    """The mean of every metric over its updates."""
    return {name: float(torch.stack(values).mean()) for name, values in sums.items()}
