"""Collecting: the agent acts in the environment and fills the replay buffer. No gradient ever passes through it."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from flowmbpo.config.training import TrainingConfig
from flowmbpo.data.replay import ReplayBuffer
from flowmbpo.envs.contract import EnvStep, VectorEnv
from flowmbpo.envs.episodes import Fault
from flowmbpo.errors import EnvironmentFailure
from flowmbpo.models.agent import Agent
from flowmbpo.training.learner import Dump

log = logging.getLogger("flowmbpo")

RECENT_EPISODES = 20


class Collector:
    """Steps the environments, stores what happened, and knows what finished episodes earned.

    `agent_steps` counts decisions, `env_steps` the simulators' control steps (action repeat included), both over all
    environments. `generator` decides random actions and exploration; the first reset takes `seed`. Episodes that the
    simulator breaks are counted in `faults` and handed to `dump`.
    """

    def __init__(
        self,
        env: VectorEnv,
        replay: ReplayBuffer,
        config: TrainingConfig,
        *,
        seed: int,
        generator: torch.Generator,
        dump: Dump,
        policy_starts: bool = False,
    ) -> None:
        self.env = env
        self.replay = replay
        self.config = config
        self.seed = seed
        self.generator = generator
        self.dump = dump
        self.policy_starts = policy_starts
        self.task_ids = env.task_ids.to(replay.device)
        self.obs = torch.empty(0)
        self.agent_steps = 0
        self.env_steps = 0
        self._env_steps_per_step = sum(env.spec.tasks[task].action_repeat for task in env.task_ids.tolist())
        self.faults = 0
        self.running_return = torch.zeros(env.num_envs)
        self.recent_returns: deque[float] = deque(maxlen=RECENT_EPISODES)

    def start(self, agent: Agent) -> None:
        """First reset, and `random_episodes` in every environment. Once, before the first epoch.

        With `policy_starts` the agent acts in them, as it was taken over.
        """
        self.obs = self.env.reset(self.seed)
        self.replay.start(self.obs)
        finished = torch.zeros(self.env.num_envs, dtype=torch.long)
        while int(finished.min()) < self.config.random_episodes:
            action = self._explore(agent) if self.policy_starts else self._random_action(agent)
            finished += self._step(agent, action, epoch=0)

    def collect(self, agent: Agent, epoch: int, after_step: Callable[[int], None] | None = None) -> dict[str, float]:
        """`horizon` steps of the policy in every environment; the metrics of that.

        `after_step` is called with the number of agent steps that each step of all environments was.
        """
        actions = []
        for _ in range(self.config.horizon):
            action = self._explore(agent)
            actions.append(action)
            self._step(agent, action, epoch)
            if after_step is not None:
                after_step(self.env.num_envs)
        metrics = action_figures(torch.stack(actions), self._action_mask(agent))
        metrics["faults/count"] = float(self.faults)
        if self.recent_returns:
            metrics["train/return_mean"] = sum(self.recent_returns) / len(self.recent_returns)
        return metrics

    def _action_mask(self, agent: Agent) -> Float[Tensor, "N A"]:
        return agent.world_model.context(self.task_ids).action_mask

    def _random_action(self, agent: Agent) -> Float[Tensor, "N A"]:
        shape = (self.env.num_envs, self.env.spec.action_dim)
        uniform = torch.rand(shape, generator=self.generator, device=self.replay.device)
        return (uniform * 2.0 - 1.0) * self._action_mask(agent)

    def _explore(self, agent: Agent) -> Float[Tensor, "N A"]:
        """A sample of the policy on the real observations, with the config's extra noise."""
        action = agent.act(self.obs.to(self.replay.device), self.task_ids, self.generator)
        if self.config.exploration_noise == 0.0:
            return action
        noise = torch.randn(action.shape, generator=self.generator, device=self.replay.device)
        return (action + self.config.exploration_noise * noise * self._action_mask(agent)).clamp(-1.0, 1.0)

    def _step(self, agent: Agent, action: Float[Tensor, "N A"], epoch: int) -> Tensor:
        """Step every environment; 1 where an episode is done."""
        step = self.env.step(action.to("cpu"))
        self.replay.add(action, step)
        self._measure_reward(agent, step)
        if self.config.learn != "policy":
            agent.world_model.observe(step.obs.to(self.replay.device))
        self.obs = step.obs
        self.agent_steps += self.env.num_envs
        self.env_steps += self._env_steps_per_step
        self.running_return += step.reward
        if bool(step.done.any()):
            self.recent_returns.extend(self.running_return[step.done].tolist())
            self.running_return[step.done] = 0.0
        for fault in step.faults:
            self._give_up_episode(fault, epoch)
        return step.done.long()

    def _measure_reward(self, agent: Agent, step: EnvStep) -> None:
        """Add the step's real rewards to the statistics, without the zeros that stand for broken steps.

        Rewards that a broken episode earned before it broke stay in: they are real, and few. A world model
        that is kept as it is keeps the scale that its reward head was trained in.
        """
        if self.config.learn == "policy":
            return
        reward, broken = step.reward, [fault.index for fault in step.faults if not fault.at_start]
        if broken:
            whole = torch.ones(len(reward), dtype=torch.bool)
            whole[broken] = False
            reward = reward[whole]
        agent.reward_normalizer.update(reward.to(self.replay.device))

    def _give_up_episode(self, fault: Fault, epoch: int) -> None:
        """Count and dump an episode that the simulator broke; the replay buffer has dropped it already."""
        self.running_return[fault.index] = 0.0
        self.faults += 1
        log.warning("%s; the episode is thrown away (number %d of this run)", fault, self.faults)
        record = {**vars(fault), "actions": torch.from_numpy(fault.actions)}
        self.dump(f"epoch{epoch:06d}-episode-{self.faults}", record)
        if self.faults > self.config.max_faults:
            raise EnvironmentFailure(
                f"{self.faults} episodes broke in the simulator; training.max_faults allows {self.config.max_faults}. "
                f"None was trained on; their seeds and actions are in the run's nonfinite/ folder. The last: {fault}"
            )

    def state_dict(self) -> dict[str, Any]:
        """The environment's state, the counts, and the returns of running and recent episodes."""
        return {
            "env": self.env.state_dict() if self.obs.numel() else {},
            "agent_steps": self.agent_steps,
            "env_steps": self.env_steps,
            "faults": self.faults,
            "running_return": self.running_return.clone(),
            "recent_returns": list(self.recent_returns),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore `state_dict`."""
        if state["env"]:
            self.obs = self.env.load_state_dict(state["env"])
        self.agent_steps = int(state["agent_steps"])
        self.env_steps = int(state["env_steps"])
        self.faults = int(state["faults"])
        self.running_return = state["running_return"].clone()
        self.recent_returns = deque(state["recent_returns"], maxlen=RECENT_EPISODES)


def action_figures(taken: Float[Tensor, "T N A"], mask: Float[Tensor, "N A"]) -> dict[str, float]:
    """Spread and saturation of the actions that were taken, over the dimensions that the environments' tasks have.

    The spread is the mean over dimensions of their standard deviation over steps and environments.
    """
    spreads = []
    owners, place = torch.unique(mask.T, dim=0, return_inverse=True)  # dimensions that the same environments have
    for row, having in enumerate(owners.bool()):
        group = taken[:, having][:, :, place == row]
        alone = group[..., 0].numel() < 2
        spreads.append(group.new_zeros(group.shape[-1]) if alone else group.std(dim=(0, 1)))
    saturated = (taken.abs() > 0.99)[:, mask.bool()]
    return {"actions/std": float(torch.cat(spreads).mean()), "actions/saturation": float(saturated.float().mean())}
