"""The episodes of a vector environment: which task each runs, their seeds, how far they are, what broke them.

Torch is imported to save them: worker processes import this module, and have no other use for torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from flowmbpo.errors import ConfigError
from flowmbpo.spec import EnvSpec

ABSURD = 1e6
"""No task here has observations or rewards of this size; a diverging simulation passes it on its way to infinity.

A simulator that knows its tasks better sets a lower bound, its `absurd`.
"""

MAX_FAILED_STARTS = 10
"""So many episodes of an environment in a row may fail to start, each a fault, before it is given up for good."""


@dataclass(frozen=True)
class Fault:
    """One broken episode: which, where it broke, why, and all that replays it.

    `step` counts the agent steps of the episode, the broken one included; 0 is an episode that could not start.
    `actions` are those of the whole episode, float32 [step, A]. `state` is the one that the broken step started from.
    """

    index: int
    task: str
    seed: int
    episode: int
    step: int
    reason: str
    state: str
    actions: np.ndarray

    @property
    def at_start(self) -> bool:
        """Whether the episode could not even start: then no step of it was taken."""
        return self.step == 0

    def __str__(self) -> str:
        where = "at the start" if self.at_start else f"in step {self.step}"
        return (
            f"{self.task}: environment {self.index} broke {where} of episode {self.episode} "
            f"(seed {self.seed}): {self.reason}; {self.state}"
        )


class EpisodeBook:
    """Which episode each of N environments is in, how many agent steps of it are done, and by which actions.

    With the seed, that determines all that happens in them. Counted in numpy: its calls cost a third of
    torch's on arrays of this size.
    """

    def __init__(self, spec: EnvSpec, task_ids: Sequence[int]) -> None:
        self.tasks = [spec.tasks[task] for task in task_ids]
        self._spec = spec
        self._task_ids = list(task_ids)
        self.seed = -1  # not started
        self.number = np.zeros(len(task_ids), dtype=np.int64)
        self.elapsed = np.zeros(len(task_ids), dtype=np.int64)
        longest = max(task.episode_length for task in self.tasks)
        self._actions = np.zeros((len(task_ids), longest, spec.action_dim), dtype=np.float32)
        self._rows = np.arange(len(task_ids))

    def start(self, seed: int) -> None:
        """Every environment is at the start of its first episode."""
        self.seed = seed
        self.number[:] = self.elapsed[:] = 0

    def require_started(self) -> None:
        """Raises ValueError before the first `start`."""
        if self.seed < 0:
            raise ValueError("the environment has not been started: call reset(seed) first")

    def record(self, actions: np.ndarray) -> None:
        """A step of every environment by `actions` [N, A]."""
        self._actions[self._rows, self.elapsed] = actions
        self.elapsed += 1

    def begin_next(self, which: np.ndarray | list[int]) -> None:
        """The next episode begins in the environments of a mask [N] or a list of indices."""
        self.number[which] += 1
        self.elapsed[which] = 0

    def actions(self, index: int) -> np.ndarray:
        """Those of an environment's running episode, without padding: float32 [t, A], a copy."""
        return self._actions[index, : self.elapsed[index], : self.tasks[index].action_dim].copy()

    def episode_seed(self, index: int) -> np.random.SeedSequence:
        """The seed of an environment's running episode."""
        return episode_seed(self.seed, index, int(self.number[index]))

    def fault(self, index: int, reason: str, state: str) -> Fault:
        """The running episode of an environment broke in the step recorded last, or at its start."""
        task, episode, step = self.tasks[index].name, int(self.number[index]), int(self.elapsed[index])
        return Fault(index, task, self.seed, episode, step, reason, state, self.actions(index))

    def state_dict(self) -> dict[str, Any]:
        """Seed, episode numbers and the actions since each episode's start: enough to replay it."""
        import torch

        return {
            "task": self._spec.label,
            "task_ids": torch.tensor(self._task_ids),
            "seed": self.seed,
            "episode": torch.from_numpy(self.number.copy()),
            "elapsed": torch.from_numpy(self.elapsed.copy()),
            "actions": [torch.from_numpy(self.actions(index)) for index in range(len(self.tasks))],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Return to a saved state; raises ValueError where it is of other tasks, see `check_same_tasks`."""
        check_same_tasks(self._spec, self._task_ids, state)
        self.seed = int(state["seed"])
        self.number[:] = state["episode"].numpy()
        self.elapsed[:] = state["elapsed"].numpy()
        for row, actions in zip(self._actions, state["actions"], strict=True):
            row[: len(actions), : actions.shape[1]] = actions.numpy()


def check_same_tasks(spec: EnvSpec, task_ids: Sequence[int], state: dict[str, Any]) -> None:
    """Refuse (ValueError) a saved state of another task or set, or of another assignment to environments."""
    saved = state["task_ids"].tolist()
    if (state["task"], len(saved)) != (spec.label, len(task_ids)):
        raise ValueError(
            f"the saved environment is {len(saved)} x '{state['task']}'; this one is {len(task_ids)} x '{spec.label}'"
        )
    if saved != list(task_ids):
        raise ValueError(
            f"the saved environment assigns the tasks of '{spec.label}' to other copies than this one: "
            "resume with the seed it was started with"
        )


def episode_seed(seed: int, index: int, episode: int) -> np.random.SeedSequence:
    """The seed of episode `episode` of environment `index`: a function of these three numbers only."""
    return np.random.SeedSequence([seed, index, episode])


def sound(values: np.ndarray, absurd: float = ABSURD) -> bool:
    """Whether every entry is finite and below `absurd`."""
    # A product is the cheapest look at all entries; NaN compares false.
    return bool(np.vdot(values, values) < absurd**2) or bool((np.abs(values) < absurd).all())


def broken_numbers(obs: np.ndarray, reward: float, absurd: float = ABSURD) -> str | None:
    """What is wrong with one environment's observation [O] and reward: not finite, or at least `absurd`; or None."""
    if abs(reward) < absurd and sound(obs, absurd):
        return None
    entries = np.flatnonzero(~(np.abs(obs) < absurd))
    values = ", ".join(f"{entry}: {obs[entry]:.6g}" for entry in entries[:8].tolist())
    finite = bool(np.isfinite(reward) and np.isfinite(obs).all())
    kind = f"absurd (beyond {absurd:.3g})" if finite else "not finite"
    return f"a result is {kind}: reward {reward:.6g}, observation entries {{{values}}}"


def assign_tasks(spec: EnvSpec, num_envs: int, seed: int, only: int | None = None) -> list[int]:
    """The task id of each of `num_envs` environments: `only`, or all: balanced to within one and shuffled by `seed`.

    Shuffled, because contiguous shares of environments go to worker processes and tasks differ in cost;
    which tasks get the odd ones is the seed's choice too. Raises ConfigError as `require_env_per_task` does.
    """
    if only is not None:
        return [only] * num_envs
    require_env_per_task(spec, num_envs)
    tasks = len(spec.tasks)
    rng = np.random.default_rng([seed, tasks, num_envs])
    whole, odd = divmod(num_envs, tasks)
    ids = np.concatenate((np.repeat(np.arange(tasks), whole), rng.permutation(tasks)[:odd]))
    return [int(task) for task in rng.permutation(ids)] if tasks > 1 else ids.tolist()


def require_env_per_task(spec: EnvSpec, num_envs: int) -> None:
    """Raises ConfigError where a task of the set would have no environment."""
    tasks = len(spec.tasks)
    if num_envs < tasks:
        raise ConfigError(
            f"task.num_envs: {num_envs} copies cannot hold the {tasks} tasks of '{spec.label}'; use at least {tasks}"
        )
