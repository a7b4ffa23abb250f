"""Learning: rounds of updates of world model, actor and critic, on batches from a replay buffer or a dataset."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from flowmbpo.config.training import TrainingConfig
from flowmbpo.data.batch import Batch
from flowmbpo.data.dataset.sampler import WindowSampler
from flowmbpo.errors import NonFiniteError
from flowmbpo.models.agent import Agent
from flowmbpo.training.batches import DatasetBatches, ReplayBatches
from flowmbpo.training.imagination import trusted_steps
from flowmbpo.training.optimiser import GuardedOptimiser, learning_rate
from flowmbpo.training.updates import EAGER, Passes, UpdateResult, update_actor, update_critic, update_model

Dump = Callable[[str, Mapping[str, Tensor | str | int]], None]
"""Receives a name for what broke (an update that was not finite, an episode), and all that reproduces it."""

Warmstart = Callable[[Callable[[], Batch], torch.Generator], dict[str, Any]]
"""Trains what could not be copied from the initial checkpoint, on batches of real windows. Returns its figures."""

Sums = dict[str, list[Tensor]]
PARTS = ("model", "actor", "critic")
GENERATORS = ("exploration", "replay", "imagination", "model", "critic")
PRETRAINING_SLICE = 200
"""Model updates of a pretraining that are done between two looks at the clock, the disk and the stop request."""


def make_generators(seed: int, device: torch.device) -> dict[str, torch.Generator]:
    """Every source of randomness of a training: equal seeds, device and threads give bit-equal runs on CPU."""
    return {
        name: torch.Generator(device).manual_seed(seed * len(GENERATORS) + offset)
        for offset, name in enumerate(GENERATORS)
    }


class Learner:
    """Owns the agent and its optimisers between epochs, and draws from `generators`; it knows no environment.

    `dataset` is what the model is pretrained on, and what offline `batches` come from; `warmstart` runs once, before
    the first update, on its windows or where there is none on those of `batches`.
    """

    def __init__(
        self,
        agent: Agent,
        config: TrainingConfig,
        batches: ReplayBatches | DatasetBatches,
        *,
        generators: dict[str, torch.Generator],
        dump: Dump,
        dataset: WindowSampler | None = None,
        passes: Passes = EAGER,
    ) -> None:
        self.agent = agent
        self.config = config
        self.batches = batches
        self.generators = generators
        self.dump = dump
        self.dataset = dataset
        self.passes = passes
        self.warmstart: Warmstart | None = None
        self.warmstarted: dict[str, Any] = {}
        self.epoch = 0
        self.updates = 0
        self.nonfinite = 0
        self.pretrained = 0
        self.started = False
        self._due = 0.0  # rounds of updates that collected steps have earned
        self._sums: Sums = {}
        self._windows: Batch | None = None
        self.optimisers = self._make_optimisers()

    def _make_optimisers(self) -> dict[str, GuardedOptimiser]:
        agent, config, clip = self.agent, self.config, self.config.clip
        model = agent.world_model, config.model_lr, config.model_betas, config.weight_decay, clip.model
        actor = agent.actor, config.actor_lr, config.betas, 0.0, clip.actor
        critic = agent.critic, config.critic_lr, config.betas, 0.0, clip.critic
        return {
            name: GuardedOptimiser(module, lr=lr, betas=betas, weight_decay=decay, clip=largest)
            for name, (module, lr, betas, decay, largest) in zip(PARTS, (model, actor, critic), strict=True)
        }

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
        return max(self.config.pretrain_steps - self.pretrained, 0) if self.epoch == 0 else 0

    def pretrain(self) -> dict[str, float]:
        """The next slice of the pretraining: model updates on the dataset, at the initial learning rate."""
        assert self.dataset is not None, "pretraining without a dataset"
        if self.pretrained == 0:
            self._warmstart(self.dataset.next)
        self.optimisers["model"].set_lr(self.config.model_lr)
        sums: Sums = {}
        for _ in range(min(self.pretraining_left, PRETRAINING_SLICE)):
            _append(sums, self.update_model(self.dataset.next()))
            self.pretrained += 1
        return {"pretrain/updates": float(self.pretrained)} | _means(sums)

    def start(self) -> None:
        """The warm start, and online the model-only warm-up. Once, before the first epoch."""
        self._warmstart(self.batches.windows if self.dataset is None else self.dataset.next)
        if self.learns_model and self.config.mode == "online":
            for _ in range(self.config.warmup_model_updates):
                self.update_model()
        self.started = True

    def keep_up(self, agent_steps: int) -> None:
        """The rounds of updates that so many more collected steps are due (`updates_per_step`)."""
        if self.config.updates_per_step is None:
            return
        self._due += agent_steps * self.config.updates_per_step
        while self._due >= 1.0:
            self._due -= 1.0
            self._round()

    def update(self) -> dict[str, float]:
        """The rest of an epoch's rounds of updates; the epoch's metrics, each the mean over its updates."""
        for _ in range(self.config.rounds if self.config.updates_per_step is None else 0):
            self._round()
        metrics = _means(self._sums) | self._set_learning_rates() | {"nonfinite/count": float(self.nonfinite)}
        self._sums = {}
        self.epoch += 1
        return metrics

    def _round(self) -> None:
        if not self._sums:  # the first of its epoch
            self._set_learning_rates()
        if self.learns_model:
            for _ in range(self.config.wm_iterations):
                _append(self._sums, self.update_model())
        if self.learns_policy:
            _append(self._sums, self.update_policy())

    def update_model(self, batch: Batch | None = None) -> dict[str, Tensor]:
        """One update of the world model, by default on the next windows."""
        windows = self.batches.windows() if batch is None else batch
        self._windows = windows
        result, losses = update_model(
            self.agent, windows, self.optimisers["model"], self.config, self.generators["model"], self.passes
        )
        self._check("model", result, lambda: vars(windows))
        return {
            "loss/dynamics": losses.dynamics.detach(),
            "loss/reward": losses.reward.detach(),
            **({} if self.agent.world_model.decoder is None else {"loss/decoder": losses.decoder.detach()}),
            "grad_norm/model": result.grad_norm,
        }

    def update_policy(self) -> dict[str, Tensor]:
        """One update of the actor, and those of the critic on its rollout."""
        agent, config = self.agent, self.config
        horizon = self._actor_horizon()
        obs, task = self.batches.starts()
        with torch.no_grad():  # the actor learns through the model, not through the encoder or the embedding
            context = agent.world_model.context(task)
            start = agent.world_model.encode(obs, context)
        noise, order = self.generators["imagination"], self.generators["critic"]
        result, objective = update_actor(
            agent, start, context, self.optimisers["actor"], config, noise, horizon, self.passes
        )
        self._check("actor", result, lambda: {"obs": obs, "task": task})
        metrics = {"loss/actor": result.loss, "grad_norm/actor": result.grad_norm}
        if config.actor_horizon is not None or config.adaptive_horizon is not None:
            metrics["horizon/actor"] = torch.tensor(float(horizon))
        if not result.stepped:
            return metrics  # the critic's targets come from the same rollout
        replayed = None
        if config.critic_replay > 0.0:  # those of the model's last update, where there was one
            replayed = self.batches.windows() if self._windows is None else self._windows
        results = update_critic(agent, objective, self.optimisers["critic"], config, order, replayed, self.passes)
        for critic_result in results:
            self._check("critic", critic_result, lambda: {"obs": obs, "task": task})
        metrics["loss/critic"] = torch.stack([r.loss for r in results]).mean()
        metrics["grad_norm/critic"] = torch.stack([r.grad_norm for r in results]).mean()
        return metrics

    def _actor_horizon(self) -> int:
        """Steps that the next actor update imagines.

        An adaptive one is measured on windows drawn from the replay generator, and on nothing that was
        measured before: a resumed run decides as the uninterrupted one does.
        """
        config, longest = self.config, self.config.longest_actor_horizon
        if config.adaptive_horizon is None:
            return longest
        batch = self.batches.replay.sample(config.wm_batch_size, longest, self.generators["replay"])
        tolerance, noise = config.adaptive_horizon.tolerance, self.generators["imagination"]
        steps = trusted_steps(self.agent.world_model, batch, tolerance, noise)
        return max(config.adaptive_horizon.minimum, int(steps))

    def _warmstart(self, batches: Callable[[], Batch]) -> None:
        if self.warmstart is not None and not self.warmstarted:
            self.warmstarted = self.warmstart(batches, self.generators["model"])
        self.warmstart = None  # it holds the checkpoint that the run began with

    def _set_learning_rates(self) -> dict[str, float]:
        config = self.config
        initial = {"model": config.model_lr, "actor": config.actor_lr, "critic": config.critic_lr}
        rates = {}
        for name in ["model"] * self.learns_model + ["actor", "critic"] * self.learns_policy:
            rate = learning_rate(initial[name], config.final_lr, self.epoch, config.epochs, config.lr_schedule)
            self.optimisers[name].set_lr(rate)
            rates[f"lr/{name}"] = rate
        return rates

    def _check(self, name: str, result: UpdateResult, tensors: Callable[[], dict[str, Tensor]]) -> None:
        """Count an update, and dump it where it was not finite. Raises NonFiniteError past `max_nonfinite`."""
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
            "windows": None if self.dataset is None else self.dataset.state_dict(),
            **self.batches.state_dict(),
            "warmstarted": dict(self.warmstarted),
            "pretrained": self.pretrained,
            "started": self.started,
            "due": self._due,
            "epoch": self.epoch,
            "updates": self.updates,
            "nonfinite": self.nonfinite,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore `state_dict` (the replay buffer and generators are restored by the caller)."""
        self.agent.load_state_dict(state["agent"])
        for name, optimiser in self.optimisers.items():
            optimiser.load_state_dict(state["optimisers"][name])
        if self.dataset is not None:
            self.dataset.load_state_dict(state["windows"])
        self.batches.load_state_dict(state)
        self.warmstarted = dict(state["warmstarted"])
        self.pretrained = int(state["pretrained"])
        self.started = bool(state["started"])
        self._due = float(state["due"])
        self.epoch = int(state["epoch"])
        self.updates = int(state["updates"])
        self.nonfinite = int(state["nonfinite"])


def _append(sums: Sums, metrics: dict[str, Tensor]) -> None:
    for name, value in metrics.items():
        sums.setdefault(name, []).append(value)


def _means(sums: Sums) -> dict[str, float]:
    return {name: float(torch.stack(values).mean()) for name, values in sums.items()}
