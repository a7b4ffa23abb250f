"""What is diagnosed, and the real experience that it is judged by."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import KW_ONLY, dataclass
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from flowmbpo.config.experiment import ExperimentConfig
from flowmbpo.data.replay import ReplayBuffer
from flowmbpo.envs.contract import VectorEnv
from flowmbpo.errors import DataError
from flowmbpo.evaluation.episodes import Episodes, Policy, run_episodes
from flowmbpo.models.agent import Agent
from flowmbpo.models.task_context import TaskContext
from flowmbpo.training.imagination import trusted_steps

ENV_SEED_BASE = (2**30 + 16) << 32  # neither training nor evaluation uses it: see SEED_BASE in runs/evaluate.py
EXPLORED_SHARE = 0.3  # of the steps of explored episodes are uniform random actions


@dataclass(frozen=True)
class Origin:
    """Where the subject comes from, for reports. `sha256` is empty for an agent in memory."""

    checkpoint: str = ""
    sha256: str = ""
    epoch: int = 0
    agent_steps: int = 0
    env_steps: int = 0
    nonfinite: int = 0


@dataclass(eq=False)
class Subject:
    """An agent in evaluation mode, the config that made it, and its real experience.

    `make_env(copies)` opens the real environment with at least so many copies, and of a set at least one of each task
    (or only those of the task `only`); the caller closes it. `replay` is the run's own buffer, None where the
    checkpoint came without it; with a `replay_trouble` it is only to be judged. `optimisers` are the saved states by
    name, `initial` builds the agent as it was before training. Every draw comes from `generator(purpose)`.
    """

    agent: Agent
    config: ExperimentConfig
    _: KW_ONLY
    device: torch.device
    seed: int
    make_env: Callable[[int], VectorEnv] | None
    origin: Origin = Origin()
    replay: ReplayBuffer | None = None
    replay_trouble: str = ""
    optimisers: Mapping[str, Any] | None = None
    initial: Callable[[], Agent] | None = None
    episode_count: int = 8
    only: int | None = None

    def generator(self, purpose: str) -> torch.Generator:
        """A fresh generator that depends on the seed and the purpose alone."""
        # torch's CPU generator reads the lower 32 bits of its seed and no more: both must be in them.
        return torch.Generator(self.device).manual_seed(zlib.crc32(f"{self.seed} {purpose}".encode()))

    def open_env(self, copies: int) -> VectorEnv:
        """The real environment. Raises DataError for a subject that has none."""
        if self.make_env is None:
            raise DataError("this diagnostic needs the real environment, and the subject was built without one")
        return self.make_env(copies)

    @cached_property
    def episodes(self) -> Episodes:
        """Whole episodes of the policy as it explores: sampled actions, closed loop."""
        generator = self.generator("policy")
        return self.run(lambda obs, task: self.agent.act(obs, task, generator), offset=0)

    @cached_property
    def explored(self) -> Episodes:
        """Episodes in which 30% of the steps are uniform random actions: what actions do, seen apart from habit."""
        generator = self.generator("explore")

        def behaviour(obs: Tensor, task: Tensor) -> Tensor:
            action = self.agent.act(obs, task, generator)
            draw = torch.rand(action.shape, generator=generator, device=action.device) * 2.0 - 1.0
            chosen = torch.rand(len(action), 1, generator=generator, device=action.device) < EXPLORED_SHARE
            return torch.where(chosen, draw * self.agent.world_model.context(task).action_mask, action)

        return self.run(behaviour, offset=1)

    @property
    def trains_model(self) -> bool:
        """Whether the run trains its world model; one that it was given is judged by what it does alone."""
        return self.config.training.learn != "policy"

    @property
    def trains_policy(self) -> bool:
        """Whether the run trains actor and critic; otherwise they are as built, or as they were taken over."""
        return self.config.training.learn != "model"

    @property
    def own_windows(self) -> bool:
        """Whether `windows` come from the run's own replay buffer."""
        return self.replay is not None and self.only is None and not self.replay_trouble

    @property
    def windows(self) -> ReplayBuffer | Episodes:
        """The run's own replay buffer; fresh episodes without a sound one, or where one task of a set is asked for."""
        return self.replay if self.replay is not None and self.own_windows else self.episodes

    @property
    def windows_source(self) -> str:
        """Where `windows` come from, in words. Runs no episode."""
        return "the run's replay buffer" if self.own_windows else "fresh episodes of the policy"

    def starts(self, count: int, generator: torch.Generator) -> tuple[Float[Tensor, "N D"], TaskContext]:
        """Encoded start states, as training draws them from the replay buffer, or uniform over fresh episodes."""
        source = self.windows
        if isinstance(source, ReplayBuffer):
            return self.encode(*source.sample_starts(count, generator))
        batch = source.sample(count, 1, generator)
        return self.encode(batch.obs[0], batch.task)

    @cached_property
    def actor_horizon(self) -> int:
        """Steps that an actor update imagines; an adaptive horizon is measured on `wm_batch_size` windows, once."""
        longest, adaptive = self.config.training.longest_actor_horizon, self.config.training.adaptive_horizon
        if adaptive is None:
            return longest
        generator = self.generator("actor horizon")
        batch = self.windows.sample(self.config.training.wm_batch_size, longest, generator)
        return max(adaptive.minimum, int(trusted_steps(self.agent.world_model, batch, adaptive.tolerance, generator)))

    @torch.no_grad()  # states to measure at; the encoder is not what is measured
    def encode(self, obs: Float[Tensor, "N O"], task: Int[Tensor, " N"]) -> tuple[Float[Tensor, "N D"], TaskContext]:
        """States of observations and the contexts of their tasks."""
        context = self.agent.world_model.context(task)
        return self.agent.world_model.encode(obs, context), context

    @property
    def batch_size(self) -> int:
        """Start states of one actor update, as the config trains with: the N of an ESNR."""
        return self.config.training.actor_batch_size or self.config.task.num_envs

    def run(self, behaviour: Policy, offset: int) -> Episodes:
        """One episode in each of `episode_count` copies; equal offsets give equal starts and equal chance."""
        with closing(self.open_env(self.episode_count)) as env:
            return run_episodes(behaviour, env, ENV_SEED_BASE + (offset << 32) + self.seed, self.device)
