"""Whole episodes of a policy in the real environment: the one closed loop, and what can be kept of it.

Letters: T longest episode, L transitions of one, N environments, O observation, A action.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray
from torch import Tensor, nn

from flowmbpo.data.batch import Batch
from flowmbpo.data.behaviour import Behaviour
from flowmbpo.envs.contract import EnvStep, VectorEnv
from flowmbpo.errors import DataError, EnvironmentFailure

log = logging.getLogger("flowmbpo")

Policy = Callable[[Float[Tensor, "N O"], Int[Tensor, " N"]], Float[Tensor, "N A"]]
"""Observations and task ids to actions; called with gradients off."""
OnStart = Callable[[Bool[Tensor, " N"]], None]
"""Told which environments' next observation is the first of an episode, for policies that remember."""


@dataclass(frozen=True)
class Taken:
    """One step of all environments. `broken` marks those whose simulator broke in it."""

    action: Float[Tensor, "N A"]
    step: EnvStep
    broken: Bool[Tensor, " N"]


class ClosedLoop:
    """`policy` acts in `env` from `env.reset(seed)` on, on `device` (that of the observations unless given).

    `obs` is what it acts upon next, `begins` (on the CPU) marks the first observations of episodes. `on_start` is
    called before the first action of all, and whenever environments have begun an episode since the last action.
    `faults` counts the episodes that broke although they were wanted (see `whole_episodes`).
    """

    def __init__(
        self,
        policy: Policy,
        env: VectorEnv,
        seed: int,
        *,
        device: torch.device | None = None,
        on_start: OnStart | None = None,
    ) -> None:
        self.env = env
        self.obs = env.reset(seed)
        self.begins = torch.ones(env.num_envs, dtype=torch.bool)
        self.faults = 0
        self._policy, self._on_start = policy, on_start
        self._device = device or self.obs.device

    @torch.no_grad()  # the environment is lived in; nothing is learnt here
    def advance(self) -> Taken:
        """Act once in every environment."""
        if self._on_start is not None and self.begins.any():
            self._on_start(self.begins)
        action = self._policy(self.obs.to(self._device), self.env.task_ids.to(self._device)).to(self.obs.device)
        step = self.env.step(action)
        broken = torch.zeros(self.env.num_envs, dtype=torch.bool)
        broken[[fault.index for fault in step.faults if not fault.at_start]] = True
        self.obs, self.begins = step.obs, step.done.cpu() | broken
        return Taken(action, step, broken)


def whole_episodes(
    loop: ClosedLoop, episodes: int, *, purpose: str, consequence: str
) -> Iterator[tuple[Taken, list[int]]]:
    """Steps until `episodes` whole episodes have ended, each with the environments where one of them did.

    How many each environment runs is fixed beforehand (they differ by at most one), because taking the first that
    finish would favour short episodes. One that is done is stepped on, uncounted. An episode that the simulator
    breaks is thrown away, with a warning of the `consequence`, and run again as the environment's next one.

    Raises EnvironmentFailure where more episodes broke than were to be `purpose`, and whatever the environment raises.
    """
    share, rest = divmod(episodes, loop.env.num_envs)
    left = [share + (index < rest) for index in range(loop.env.num_envs)]
    while any(left):
        taken = loop.advance()
        ended = [index for index in taken.step.done.nonzero().flatten().tolist() if left[index]]
        for index in ended:
            left[index] -= 1
        for fault in taken.step.faults:
            if left[fault.index]:
                loop.faults += 1
                log.warning("%s; %s", fault, consequence)
            if loop.faults > episodes:
                raise EnvironmentFailure(f"{loop.faults} episodes broke while {episodes} were to be {purpose}; {fault}")
        yield taken, ended


@dataclass(frozen=True)
class Episodes:
    """N episodes, time-major and padded to the longest; `action[t]` leads from obs[t] to obs[t + 1].

    `length` counts an episode's transitions; behind them lie zeros, and the last observation
    repeated. `terminated` tells the episodes that the task ended itself from those of the time
    limit. An episode that the simulator broke is cut before the broken step and marked `broken`.
    """

    obs: Float[Tensor, "T+1 N O"]
    action: Float[Tensor, "T N A"]
    reward: Float[Tensor, "T N"]
    length: Int[Tensor, " N"]
    terminated: Bool[Tensor, " N"]
    broken: Bool[Tensor, " N"]
    task: Int[Tensor, " N"]

    @property
    def returns(self) -> Float[Tensor, " N"]:
        """Undiscounted sums of real rewards."""
        return self.reward.double().sum(0)

    @property
    def valid(self) -> Bool[Tensor, "T N"]:
        """Which transitions exist."""
        return torch.arange(len(self.action), device=self.length.device).unsqueeze(1) < self.length

    def sample(self, batch_size: int, horizon: int, generator: torch.Generator) -> Batch:
        """Windows of `horizon` transitions, starts uniform over all transitions (with replacement).

        Padded as `Batch` says where a window outlasts its episode. Raises DataError where no episode has a transition.
        """
        start, episode = self.draw(batch_size, generator)
        return self.cut(start, episode, horizon)

    def draw(self, count: int, generator: torch.Generator) -> tuple[Int[Tensor, " B"], Int[Tensor, " B"]]:
        """Steps, and episodes that they belong to: as `sample` draws its starts."""
        time, episode = self.valid.nonzero(as_tuple=True)
        if not len(time):
            raise DataError("no real transition was recorded: every episode broke at its first step")
        chosen = torch.randint(len(time), (count,), generator=generator, device=generator.device).to(time.device)
        return time[chosen], episode[chosen]

    def cut(self, start: Int[Tensor, " B"], episode: Int[Tensor, " B"], horizon: int) -> Batch:
        """Windows of `horizon` transitions from these (existing) steps of these episodes, padded as `Batch` says."""
        steps = start + torch.arange(horizon + 1, device=start.device).unsqueeze(1)
        length = self.length[episode]
        valid = steps[:-1] < length
        at = steps[:-1].clamp(max=len(self.action) - 1)
        return Batch(
            obs=self.obs[torch.minimum(steps, length), episode],
            action=self.action[at, episode] * valid.unsqueeze(-1),
            reward=self.reward[at, episode] * valid,
            terminated=self.terminated[episode] & (steps[:-1] == length - 1),
            valid=valid,
            task=self.task[episode],
        )


def run_episodes(policy: Policy, env: VectorEnv, seed: int, device: torch.device) -> Episodes:
    """The first episode of each environment from `env.reset(seed)`, broken or not; the result lies on `device`."""
    loop = ClosedLoop(policy, env, seed, device=device)
    running = torch.ones(env.num_envs, dtype=torch.bool)
    length = torch.zeros(env.num_envs, dtype=torch.long)
    terminated, broken = torch.zeros_like(running), torch.zeros_like(running)
    seen, taken, earned = [loop.obs.clone()], [], []
    while bool(running.any()):
        now = loop.advance()
        counted = running & ~now.broken
        length += counted
        seen.append(torch.where(counted.unsqueeze(-1), now.step.final_obs, seen[-1]))
        taken.append(now.action * counted.unsqueeze(-1))
        earned.append(now.step.reward * counted)
        terminated |= counted & now.step.terminated
        broken |= running & now.broken
        running &= ~loop.begins
    return Episodes(
        obs=torch.stack(seen).to(device),
        action=torch.stack(taken).to(device),
        reward=torch.stack(earned).to(device),
        length=length.to(device),
        terminated=terminated.to(device),
        broken=broken.to(device),
        task=env.task_ids.to(device),
    )


def film_episodes(policy: Policy, env: VectorEnv, episodes: int, seed: int) -> Iterator[np.ndarray]:
    """Frames (uint8 [height, width, 3]) of the first environment's first `episodes` episodes from `seed`.

    One frame per observation acted upon; an episode's final observation has none, because the
    environment has reset itself by then. One is enough: make `env` with `num_envs` 1.
    """
    loop = ClosedLoop(policy, env, seed)
    while episodes > 0:
        yield env.render(0)
        step = loop.advance().step
        if step.faults:
            raise EnvironmentFailure(f"{step.faults[0]}; no film is made of an episode that broke")
        episodes -= int(step.done[0])


@dataclass(frozen=True)
class RecordedEpisode:
    """L transitions with the task's own widths, as a dataset keeps them; action[t] and reward[t] leave obs[t].

    `faults` counts the episodes that broke since the last recorded one and are recorded nowhere.
    """

    task: int
    obs: Float[NDArray[np.float32], "L+1 O"]
    action: Float[NDArray[np.float32], "L A"]
    reward: Float[NDArray[np.float32], " L"]
    terminated: NDArray[np.bool_]
    success: float | None
    faults: int


def record_episodes(env: VectorEnv, behaviour: Behaviour, episodes: int, seed: int) -> Iterator[RecordedEpisode]:
    """`episodes` whole episodes from `env.reset(seed)`, in the order in which they end (then by environment).

    Recorded actions are those that the environment took: clipped to [-1, 1]. Raises as `whole_episodes` does.
    """

    def act(obs: Tensor, task: Tensor) -> Tensor:
        own = behaviour.act(obs, loop.begins).clamp(-1.0, 1.0)
        return nn.functional.pad(own, (0, env.spec.action_dim - own.shape[1]))

    loop = ClosedLoop(act, env, seed)
    numbers = env.task_ids.tolist()
    tasks = [env.spec.tasks[number] for number in numbers]
    seen = [[row[: task.obs_dim]] for task, row in zip(tasks, _numpy(loop.obs), strict=True)]
    done: list[list[tuple[NDArray[np.float32], np.float32]]] = [[] for _ in tasks]
    reported = 0
    every = whole_episodes(loop, episodes, purpose="recorded", consequence="the episode is not recorded")
    for taken, ended in every:
        step = taken.step
        action, reached, first, reward = map(_numpy, (taken.action, step.final_obs, step.obs, step.reward))
        for index, task in enumerate(tasks):
            if not taken.broken[index]:
                seen[index].append(reached[index, : task.obs_dim])
                done[index].append((action[index, : task.action_dim], reward[index]))
            if index in ended:
                actions, rewards = zip(*done[index], strict=True)
                flags = np.zeros(len(rewards), dtype=np.bool_)
                flags[-1] = bool(step.terminated[index])
                success = float(step.success[index])
                yield RecordedEpisode(
                    task=numbers[index],
                    obs=np.stack(seen[index]),
                    action=np.stack(actions),
                    reward=np.array(rewards, dtype=np.float32),
                    terminated=flags,
                    success=None if np.isnan(success) else success,
                    faults=loop.faults - reported,
                )
                reported = loop.faults
            if loop.begins[index]:
                seen[index], done[index] = [first[index, : task.obs_dim]], []


def _numpy(values: torch.Tensor) -> NDArray[np.float32]:
    """A copy of its own in main memory: environments may reuse their tensors."""
    return values.detach().to(dtype=torch.float32, device="cpu").numpy().copy()
