"""What an environment answered along a table of actions, and the one rollout of it that the checks share."""

from __future__ import annotations

import io
import pickle
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, fields
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from flowmbpo.config.task import TaskConfig
from flowmbpo.envs.contract import VectorEnv
from flowmbpo.envs.make import open_env
from flowmbpo.envs.resolve import resolve

Motion = Literal["zero", "random"]
_RESUMED_STEPS = 200


@dataclass(frozen=True)
class Recording:
    """T steps of N environments. `first` are the observations before the first step, `broken` marks faults."""

    first: Float[Tensor, "N O"]
    obs: Float[Tensor, "T N O"]
    final_obs: Float[Tensor, "T N O"]
    reward: Float[Tensor, "T N"]
    success: Float[Tensor, "T N"]
    terminated: Bool[Tensor, "T N"]
    truncated: Bool[Tensor, "T N"]
    broken: Bool[Tensor, "T N"]

    @property
    def steps(self) -> int:
        """T."""
        return len(self.reward)

    def of(self, index: int) -> Recording:
        """The same for one environment alone, still with its axis."""
        return self._sliced(slice(None), slice(index, index + 1), self.first)

    def part(self, start: int, stop: int) -> Recording:
        """Steps `start` to `stop`; `first` is then what was seen before step `start`."""
        return self._sliced(slice(start, stop), slice(None), self.obs[start - 1] if start else self.first)

    def _sliced(self, steps: slice, envs: slice, first: Tensor) -> Recording:
        return Recording(first[envs], *(getattr(self, field.name)[steps, envs] for field in fields(self)[1:]))


def random_actions(env: VectorEnv, steps: int, seed: int) -> Float[Tensor, "T N A"]:
    """Uniform in [-1, 1]."""
    generator = torch.Generator().manual_seed(seed)
    return 2 * torch.rand(steps, env.num_envs, env.spec.action_dim, generator=generator) - 1


def record(env: VectorEnv, first: Float[Tensor, "N O"], actions: Iterable[Float[Tensor, "N A"]]) -> Recording:
    """Step `env`, whose current observations are `first`, along `actions` (at least one)."""
    steps = [env.step(action) for action in actions]
    answers = [torch.stack([getattr(step, field.name) for step in steps]) for field in fields(Recording)[1:-1]]
    broken = torch.zeros(len(steps), len(first), dtype=torch.bool)
    for marks, step in zip(broken, steps, strict=True):
        marks[[fault.index for fault in step.faults if not fault.at_start]] = True
    answers.append(broken)
    return Recording(first, *answers)


def difference(expected: Recording, found: Recording) -> str | None:
    """Where the earliest bit differs, in words; None where all are equal (nan equals the same nan)."""
    places = []
    for field in fields(Recording):
        left, right = getattr(expected, field.name), getattr(found, field.name)
        unlike = (left.float().view(torch.int32) != right.float().view(torch.int32)).nonzero()
        if len(unlike):
            at = tuple(unlike[0, : 1 if field.name == "first" else 2].tolist())
            places.append((at[0] if len(at) > 1 else -1, at[-1], field.name, left[at], right[at]))
    if not places:
        return None
    step, index, name, left, right = min(places, key=lambda place: place[0])
    where = f"the first observation of copy {index}" if step < 0 else f"{name} of copy {index} in step {step + 1}"
    if left.dtype == torch.bool:
        return f"{where}: {bool(right)} in place of {bool(left)}"
    return f"{where}: differs by up to {float((right - left).abs().max()):.3g}"


def walk(env: VectorEnv, steps: int, seed: int, motion: Motion) -> Iterator[int]:
    """Reset from `seed`, then step; yields the number of agent steps taken so far, 0 to `steps`.

    An episode that ends on the way is followed by the next.
    """
    env.reset(seed)
    yield 0
    actions = random_actions(env, steps, seed)
    for place, action in enumerate(torch.zeros_like(actions) if motion == "zero" else actions, start=1):
        env.step(action)
        yield place


class ContractBroken(Exception):
    """Raised by a check that found a promise broken; the message becomes the result's detail."""


@dataclass(eq=False)
class CheckedEnv:
    """What is checked: `copies` environments of `config` (a set gets one more than it has tasks, if that is more).

    Comparisons run over `steps` agent steps; with `whole_episodes` the rollout goes on past the longest time limit.
    `workers` processes (or threads) step the repetition, this process the rest.
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
        with open_env(self.config, copies or self.copies, workers, seed=self.seed, device=self.device) as env:
            yield env
        self.workers_cpu_s += env.cpu_seconds()

    @contextmanager
    def reused(self) -> Iterator[VectorEnv]:
        """One instance in this process that several checks share: making some takes longer than stepping them.

        `reset` starts it over completely, by contract; one that something was raised over is replaced.
        """
        if self._kept is None:
            self._kept = self._open.enter_context(self.opened())
        try:
            yield self._kept
        except BaseException:  # no worker outlives what ended it, an interrupt too; passed on
            self.close()
            raise

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
            self.tasks = [self.spec.tasks[task] for task in self.task_ids.tolist()]  # what each environment runs
        return f"{self.copies} copies, {total} steps"

    def _saving(self, env: VectorEnv) -> Iterator[Float[Tensor, "N A"]]:
        """The actions; before that of step `saved_at` the state of `env` is put by, as a file would give it back."""
        for place, action in enumerate(self.actions):
            if place == self.saved_at:
                file = io.BytesIO()
                torch.save(env.state_dict(), file)
                file.seek(0)
                try:
                    self.state: dict[str, Any] = torch.load(file, weights_only=True)
                except pickle.UnpicklingError as error:
                    raise ContractBroken(
                        "the saved state holds more than tensors, numbers, strings, lists and dicts, so no file gives "
                        "it back"
                    ) from error
            yield action


def _mid_episode(steps: int, length: int) -> int:
    """The latest step that leaves `_RESUMED_STEPS` (or half of all) and lies in an episode's second half.

    Half-way through an episode of `length` there is a state to lose; at its start there is none.
    """
    latest = steps - min(_RESUMED_STEPS, steps // 2)
    return next((step for step in range(latest, 0, -1) if step % length >= length / 2), latest)
