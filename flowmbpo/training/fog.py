"""The first-order-gradient training loop: collect in the environment, learn in imagination.

The environment only fills the replay buffer; no gradient ever passes through it.
"""

from __future__ import annotations

import logging
from collections import deque
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from flowmbpo.config.training import TrainingConfig
from flowmbpo.data.batch import Batch
from flowmbpo.data.replay import ReplayBuffer
from flowmbpo.envs.contract import EnvStep, Fault, VectorEnv
from flowmbpo.errors import EnvironmentFailure
from flowmbpo.models.agent import Agent
from flowmbpo.training.trainer import Dump, Trainer, Warmstart, WindowSource, means

log = logging.getLogger("flowmbpo")

RECENT_EPISODES = 20


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


class FoGTrainer(Trainer):
    """Online: collects with its own policy, and learns from the replay buffer that this fills."""

    def __init__(
        self,
        agent: Agent,
        env: VectorEnv,
        config: TrainingConfig,
        *,
        seed: int,
        device: torch.device,
        dump: Dump,
        windows: WindowSource | None = None,
        warmstart: Warmstart | None = None,
    ) -> None:
        super().__init__(agent, config, seed=seed, device=device, dump=dump, windows=windows, warmstart=warmstart)
        self.env = env
        spec = env.spec
        self.task_ids = env.task_ids.to(device)
        self.replay = ReplayBuffer(
            config.wm_buffer_size, env.num_envs, spec.obs_dim, spec.action_dim, env.task_ids, device
        )
        self.env_seed = seed
        self.obs = torch.empty(0)
        self.running_return = torch.zeros(env.num_envs)
        self.recent_returns: deque[float] = deque(maxlen=RECENT_EPISODES)

    def start(self) -> None:
        """First reset, random episodes, and model-only warm-up updates. Once, before the first epoch."""
        self.obs = self.env.reset(self.env_seed)
        self.replay.start(self.obs)
        finished = torch.zeros(self.env.num_envs, dtype=torch.long)
        while int(finished.min()) < self.config.random_episodes:
            finished += self._step_env(self._random_action())
        self._warmstart(self._model_batch if self.windows is None else self.windows.next)
        if self.learns_model:
            for _ in range(self.config.warmup_model_updates):
                self._model_update()
        self.started = True

    def run_epoch(self) -> dict[str, float]:
        """One epoch: `horizon` steps in every copy, then the rounds of updates. Returns its metrics."""
        if not self.started:
            self.start()
        rates = self._set_learning_rates()
        actions = []
        for _ in range(self.config.horizon):
            action = self._explore()
            actions.append(action)
            self._step_env(action)
        metrics = means(self._rounds())
        self.epoch += 1
        metrics |= action_figures(torch.stack(actions), self.agent.world_model.context(self.task_ids).action_mask)
        metrics["nonfinite/count"] = float(self.nonfinite)
        metrics["faults/count"] = float(self.faults)
        if self.recent_returns:
            metrics["train/return_mean"] = sum(self.recent_returns) / len(self.recent_returns)
        return metrics | rates

    def cpu_seconds(self) -> float:
        """Of the environment's worker processes."""
        return self.env.cpu_seconds()

    def close(self) -> None:
        """Stop the environment's workers and the dataset's readers."""
        self.env.close()
        super().close()

    def _model_batch(self) -> Batch:
        return self.replay.sample(self.config.wm_batch_size, self.config.horizon, self.generators["replay"])

    def _starts(self) -> tuple[Float[Tensor, "B O"], Int[Tensor, " B"]]:
        return self.replay.sample_starts(self.config.actor_batch_size or self.env.num_envs, self.generators["replay"])

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

        Rewards that a broken episode earned before it broke stay in: they are real, and few. A world model
        that is kept as it is keeps the scale that its reward head was trained in.
        """
        if not self.learns_model:
            return
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

    def state_dict(self) -> dict[str, Any]:
        """The trainer's own state, the environment's, and the returns of running and recent episodes."""
        return super().state_dict() | {
            "env": self.env.state_dict() if self.started else {},
            "running_return": self.running_return.clone(),
            "recent_returns": list(self.recent_returns),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore `state_dict`."""
        super().load_state_dict(state)
        if self.started:
            self.obs = self.env.load_state_dict(state["env"])
        self.running_return = state["running_return"].clone()
        self.recent_returns = deque(state["recent_returns"], maxlen=RECENT_EPISODES)
