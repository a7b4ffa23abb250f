"""An environment under inspection: instances on demand, and one rollout that the checks share."""

from __future__ import annotations

import io
import pickle
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from flowmbpo.config.task import TaskConfig
from flowmbpo.envs.contract import VectorEnv
from flowmbpo.envs.inspection.recording import random_actions, record
from flowmbpo.envs.make import open_env
from flowmbpo.envs.resolve import resolve
from flowmbpo.spec import TaskInfo

_RESUMED_STEPS = 200


class ContractBroken(Exception):
    """Raised by a check that found a promise broken; the message becomes the result's detail."""


@dataclass(eq=False)
class CheckedEnv:
    """What is checked: `copies` environments of `config` (a set gets one more than it has tasks, if that is more).

    Comparisons run over `steps` agent steps. With `whole_episodes` the rollout goes on past the
    longest time limit, so that the limit itself is seen. `workers` processes (or threads) step the
    repetition; everything else runs in this process.
    """

    config: TaskConfig
    copies: int
    steps: int
    seed: int
    workers: int
    whole_episodes: bool
    device: str
    workers_cpu_s: float = 0.0

    def __post_init__(self) -> None:
        self.spec = resolve(self.config).spec
        tasks = len(self.spec.tasks)
        if tasks > 1:
            self.copies = max(self.copies, tasks + 1)
        self._open = ExitStack()
        self._kept: VectorEnv | None = None

    @contextmanager
    def opened(self, copies: int | None = None, workers: int = 0) -> Iterator[VectorEnv]:
        """A fresh instance, closed at the end of the block."""
        count = self.copies if copies is None else copies
        with open_env(self.config, count, workers, seed=self.seed, device=self.device) as env:
            yield env
        self.workers_cpu_s += env.cpu_seconds()

    @contextmanager
    def reused(self) -> Iterator[VectorEnv]:
        """One instance in this process that several checks share: making some takes longer than stepping them.

        `reset` starts it over completely, by contract; one that something was raised over is replaced.
        """
        if self._kept is None:
            self._kept = self._open.enter_context(self.opened())
        sound = False
        try:
            yield self._kept
            sound = True
        finally:
            if not sound:
                self.close()

    def close(self) -> None:
        """Close the shared instance; safe to call twice."""
        self._kept = None
        self._open.close()

    def roll_out(self) -> str:
        """The rollout that the other checks look at: make the environment, reset it, step it, save it."""
        lengths = [task.episode_length for task in self.spec.tasks]
        total = max(self.steps, max(lengths) + 1) if self.whole_episodes else self.steps
        self.saved_at = _mid_episode(self.steps, min(lengths))
        with self.reused() as env:
            self.actions = random_actions(env, total, self.seed)
            self.recording = record(env, env.reset(self.seed), self._saving(env))
            self.task_ids = env.task_ids.clone()
        return f"{self.copies} copies, {total} steps"

    @cached_property
    def tasks(self) -> list[TaskInfo]:
        """What each environment runs."""
        return [self.spec.tasks[task] for task in self.task_ids.tolist()]

    def _saving(self, env: VectorEnv) -> Iterator[Float[Tensor, "N A"]]:
        """The actions; before that of step `saved_at` the state of `env` is put by, as a file would give it back."""
        for place, action in enumerate(self.actions):
            if place == self.saved_at:
                self.state = _through_bytes(env.state_dict())
            yield action


def _mid_episode(steps: int, length: int) -> int:
    """The latest step that leaves `_RESUMED_STEPS` (or half of all) and lies in an episode's second half.

    Half-way through an episode of `length` there is a state to lose; at its start there is none.
    """
    latest = steps - min(_RESUMED_STEPS, steps // 2)
    return next((step for step in range(latest, 0, -1) if step % length >= length / 2), latest)


def _through_bytes(state: dict[str, Any]) -> dict[str, Any]:
    """`state` written and read again, by a reader that takes plain data only."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    try:
        loaded: dict[str, Any] = torch.load(file, weights_only=True)
    except pickle.UnpicklingError as error:
        raise ContractBroken(
            "the saved state holds more than tensors, numbers, strings, lists and dicts, so no file gives it back"
        ) from error
    return loaded
