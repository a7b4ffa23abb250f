"""The first-order-gradient training loop: collect in the environment, learn in imagination.

The environment only fills the replay buffer; no gradient ever passes through it.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from flowmbpo.data.replay import ReplayBuffer
from flowmbpo.envs.base import EnvStep, VectorEnv
from flowmbpo.envs.faults import Fault
from flowmbpo.errors import EnvironmentFailure, NonFiniteError
from flowmbpo.models.agent import Agent
from flowmbpo.training.config import TrainingConfig
from flowmbpo.training.horizon import trusted_steps
from flowmbpo.training.optimiser import GuardedOptimiser
from flowmbpo.training.schedule import learning_rate
from flowmbpo.training.updates import UpdateResult, update_actor, update_critic, update_model

log = logging.getLogger("flowmbpo")

Dump = Callable[[str, Mapping[str, Tensor | str | int]], None]
"""Receives a name for what broke (an update that was not finite, an episode), and all that reproduces it."""

RECENT_EPISODES = 20
GENERATORS = ("exploration", "replay", "imagination", "model", "critic")


def action_figures(taken: Float[Tensor, "T N A"], mask: Float[Tensor, "N A"]) -> dict[str, float]:
    """Spread and saturation of the actions that were taken, over the dimensions that the copies' tasks have.

    The spread is the mean over dimensions of their standard deviation over steps and copies.
    """
    spreads = []
    copies, place = torch.unique(mask.T, dim=0, return_inverse=True)  # dimensions that the same copies have
    for row, having in enumerate(copies.bool()):
        group = taken[:, having][:, :, place == row]
        alone = group[..., 0].numel() < 2
        spreads.append(group.new_zeros(group.shape[-1]) if alone else group.std(dim=(0, 1)))
    saturated = (taken.abs() > 0.99)[:, mask.bool()]
    return {"actions/std": float(torch.cat(spreads).mean()), "actions/saturation": float(saturated.float().mean())}


class FoGTrainer:
    """Owns the agent, its optimisers, the replay buffer and the environment between epochs.

    Every source of randomness is one of `generators`, seeded from `seed`: equal seeds, device and
    thread count give bit-equal runs on CPU.
    """

    def __init__(
        self, agent: Agent, env: VectorEnv, config: TrainingConfig, *, seed: int, device: torch.device, dump: Dump
    ) -> None:
        self.agent = agent.to(device)
        self.env = env
        self.config = config
        self.device = device
        self.dump = dump
        self.epoch = 0
        self.env_steps = 0
        self.nonfinite = 0
        self.faults = 0
        self.updates = 0
        self.started = False
        spec = env.spec
        self.task_ids = env.task_ids.to(device)
        self.replay = ReplayBuffer(
            config.wm_buffer_size, env.num_envs, spec.obs_dim, spec.action_dim, env.task_ids, device
        )
        self.optimisers = self._make_optimisers()
        self.generators = {
            name: torch.Generator(device).manual_seed(seed * len(GENERATORS) + offset)
            for offset, name in enumerate(GENERATORS)
        }
        self.env_seed = seed
        self.obs = torch.empty(0)
        self.running_return = torch.zeros(env.num_envs)
        self.recent_returns: deque[float] = deque(maxlen=RECENT_EPISODES)

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

    def start(self) -> None:
        """First reset, random episodes, and model-only warm-up updates. Once, before the first epoch."""
        self.obs = self.env.reset(self.env_seed)
        self.replay.start(self.obs)
        finished = torch.zeros(self.env.num_envs, dtype=torch.long)
        while int(finished.min()) < self.config.random_episodes:
            finished += self._step_env(self._random_action())
        for _ in range(self.config.warmup_model_updates):
            self._model_update()
        self.started = True

    def run_epoch(self) -> dict[str, float]:
        """One epoch: `horizon` steps in every copy, then the rounds of updates. Returns its metrics."""
        config = self.config
        if not self.started:
            self.start()
        rates = self._set_learning_rates()
        actions = []
        for _ in range(config.horizon):
            action = self._explore()
            actions.append(action)
            self._step_env(action)
        sums: dict[str, list[Tensor]] = {}
        for _ in range(config.rounds):
            for _ in range(config.wm_iterations):
                for name, value in self._model_update().items():
                    sums.setdefault(name, []).append(value)
            for name, value in self._policy_update().items():
                sums.setdefault(name, []).append(value)
        self.epoch += 1
        metrics = {name: float(torch.stack(values).mean()) for name, values in sums.items()}
        metrics |= action_figures(torch.stack(actions), self.agent.world_model.context(self.task_ids).action_mask)
        metrics["nonfinite/count"] = float(self.nonfinite)
        metrics["faults/count"] = float(self.faults)
        if self.recent_returns:
            metrics["train/return_mean"] = sum(self.recent_returns) / len(self.recent_returns)
        return metrics | rates

    def _set_learning_rates(self) -> dict[str, float]:
        config = self.config
        rates = {}
        for name, initial in (("model", config.model_lr), ("actor", config.actor_lr), ("critic", config.critic_lr)):
            rate = learning_rate(initial, config.final_lr, self.epoch, config.epochs, config.lr_schedule)
            self.optimisers[name].set_lr(rate)
            rates[f"lr/{name}"] = rate
        return rates

    def _random_action(self) -> Tensor:
        shape = (self.env.num_envs, self.env.spec.action_dim)
        uniform = torch.rand(shape, generator=self.generators["exploration"], device=self.device)
        return (uniform * 2.0 - 1.0) * self.agent.world_model.context(self.task_ids).action_mask

    def _explore(self) -> Tensor:
        """A sample of the policy on the real observations, with the config's extra noise."""
        generator = self.generators["exploration"]
        action = self.agent.act(self.obs.to(self.device), self.task_ids, generator)
        if self.config.exploration_noise == 0.0:
            return action
        noise = torch.randn(action.shape, generator=generator, device=self.device)
        mask = self.agent.world_model.context(self.task_ids).action_mask
        return (action + self.config.exploration_noise * noise * mask).clamp(-1.0, 1.0)

    def _step_env(self, action: Tensor) -> Tensor:
        step = self.env.step(action.to("cpu"))
        self.replay.add(action, step)
        self._measure_reward(step)
        self.obs = step.obs
        self.env_steps += self.env.num_envs
        self.running_return += step.reward
        if bool(step.done.any()):
            self.recent_returns.extend(self.running_return[step.done].tolist())
            self.running_return[step.done] = 0.0
        for fault in step.faults:
            self._give_up_episode(fault)
        return step.done.long()

    def _measure_reward(self, step: EnvStep) -> None:
        """Add the step's real rewards to the statistics, without the zeros that stand for broken steps.

        Rewards that a broken episode earned before it broke stay in: they are real, and few.
        """
        reward, broken = step.reward, [fault.index for fault in step.faults if not fault.at_start]
        if broken:
            whole = torch.ones(len(reward), dtype=torch.bool)
            whole[broken] = False
            reward = reward[whole]
        self.agent.reward_normalizer.update(reward.to(self.device))

    def _give_up_episode(self, fault: Fault) -> None:
        """Count and dump an episode that the simulator broke; the replay buffer has dropped it already."""
        self.running_return[fault.index] = 0.0
        self.faults += 1
        log.warning("%s; the episode is thrown away (number %d of this run)", fault, self.faults)
        record = {**vars(fault), "actions": torch.from_numpy(fault.actions)}
        self.dump(f"epoch{self.epoch:06d}-episode-{self.faults}", record)
        if self.faults > self.config.max_faults:
            raise EnvironmentFailure(
                f"{self.faults} episodes broke in the simulator; training.max_faults allows {self.config.max_faults}. "
                f"None was trained on; their seeds and actions are in the run's nonfinite/ folder. The last: {fault}"
            )

    def _model_update(self) -> dict[str, Tensor]:
        batch = self.replay.sample(self.config.wm_batch_size, self.config.horizon, self.generators["replay"])
        result, losses = update_model(
            self.agent, batch, self.optimisers["model"], self.config, self.generators["model"]
        )
        self._check("model", result, lambda: vars(batch))
        return {
            "loss/dynamics": losses.dynamics.detach(),
            "loss/reward": losses.reward.detach(),
            "grad_norm/model": result.grad_norm,
        }

    def _actor_horizon(self) -> int:
        """Steps that the next actor update imagines.

        An adaptive one is measured on windows drawn from the replay generator, and on nothing that was
        measured before: a resumed run decides as the uninterrupted one does.
        """
        config, longest = self.config, self.config.longest_actor_horizon
        if config.adaptive_horizon is None:
            return longest
        batch = self.replay.sample(config.wm_batch_size, longest, self.generators["replay"])
        steps = trusted_steps(self.agent.world_model, batch, config.adaptive_horizon.tolerance)
        return max(config.adaptive_horizon.minimum, int(steps))

    def _policy_update(self) -> dict[str, Tensor]:
        agent, config = self.agent, self.config
        horizon = self._actor_horizon()
        obs, task = self.replay.sample_starts(config.actor_batch_size or self.env.num_envs, self.generators["replay"])
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
            "env": self.env.state_dict() if self.started else {},
            "started": self.started,
            "epoch": self.epoch,
            "env_steps": self.env_steps,
            "updates": self.updates,
            "nonfinite": self.nonfinite,
            "faults": self.faults,
            "running_return": self.running_return.clone(),
            "recent_returns": list(self.recent_returns),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore `state_dict` (the replay buffer and generators are restored by the caller)."""
        self.agent.load_state_dict(state["agent"])
        for name, optimiser in self.optimisers.items():
            optimiser.load_state_dict(state["optimisers"][name])
        self.started = bool(state["started"])
        if self.started:
            self.obs = self.env.load_state_dict(state["env"])
        self.epoch = int(state["epoch"])
        self.env_steps = int(state["env_steps"])
        self.updates = int(state["updates"])
        self.nonfinite = int(state["nonfinite"])
        self.faults = int(state.get("faults", 0))  # checkpoints of 0.1 do not count them
        self.running_return = state["running_return"].clone()
        self.recent_returns = deque(state["recent_returns"], maxlen=RECENT_EPISODES)
