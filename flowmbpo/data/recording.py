"""Whole episodes of a running environment, aligned as a dataset keeps them."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray

from flowmbpo.data.behaviour import Behaviour
from flowmbpo.envs.contract import VectorEnv
from flowmbpo.errors import EnvironmentFailure

log = logging.getLogger("flowmbpo")


@dataclass(frozen=True)
class RecordedEpisode:
    """L transitions with the task's own widths; action[t] and reward[t] leave obs[t].

    `faults` counts the episodes that broke since the last recorded one and are recorded nowhere.
    """

    task: int
    obs: Float[NDArray[np.float32], "L+1 O"]
    action: Float[NDArray[np.float32], "L A"]
    reward: Float[NDArray[np.float32], " L"]
    terminated: NDArray[np.bool_]
    success: float | None
    faults: int

    @property
    def return_(self) -> float:
        """The undiscounted sum of rewards."""
        return float(self.reward.sum(dtype=np.float64))


class _Copy:
    """The episode that one copy is in."""

    def __init__(self, first: NDArray[np.float32]) -> None:
        self.obs = [first]
        self.action: list[NDArray[np.float32]] = []
        self.reward: list[float] = []


@torch.no_grad()  # episodes are recorded; nothing is learnt here
def record_episodes(env: VectorEnv, behaviour: Behaviour, episodes: int, seed: int) -> Iterator[RecordedEpisode]:
    """`episodes` whole episodes from `env.reset(seed)`, in the order in which they end (then by copy).

    How many each copy runs is fixed beforehand (they differ by at most one): taking the first that finish would
    favour short episodes. An episode that the simulator breaks is thrown away, and the copy's next one stands in.
    Recorded actions are those that the environment took: clipped to [-1, 1].

    Raises EnvironmentFailure where more episodes broke than were asked for, and whatever `env` raises.
    """
    share, rest = divmod(episodes, env.num_envs)
    left = [share + (copy < rest) for copy in range(env.num_envs)]
    tasks = env.task_ids.tolist()
    widths = [(env.spec.tasks[task].obs_dim, env.spec.tasks[task].action_dim) for task in tasks]
    obs = env.reset(seed)
    running = [_Copy(row[: widths[copy][0]]) for copy, row in enumerate(_numpy(obs))]
    first = torch.ones(env.num_envs, dtype=torch.bool)
    faults = reported = 0
    while any(left):
        action = behaviour.act(obs, first).clamp(-1.0, 1.0)
        step = env.step(action)
        taken, reached, begun, reward = map(_numpy, (action, step.final_obs, step.obs, step.reward))
        broken = {fault.index for fault in step.faults if not fault.at_start}
        for fault in step.faults:
            if left[fault.index]:
                faults += 1
                log.warning("%s; the episode is not recorded", fault)
            if faults > episodes:
                raise EnvironmentFailure(f"{faults} episodes broke while {episodes} were to be recorded; {fault}")
        first = step.done.cpu().clone()
        for copy, current in enumerate(running):
            o_width, a_width = widths[copy]
            if copy in broken:
                first[copy] = True
                running[copy] = _Copy(begun[copy, :o_width])
                continue
            current.obs.append(reached[copy, :o_width])
            current.action.append(taken[copy, :a_width])
            current.reward.append(float(reward[copy]))
            if bool(step.done[copy]):
                if left[copy]:
                    left[copy] -= 1
                    success = float(step.success[copy])
                    yield _finished(tasks[copy], current, bool(step.terminated[copy]), success, faults - reported)
                    reported = faults
                running[copy] = _Copy(begun[copy, :o_width])
        obs = step.obs


def _finished(task: int, copy: _Copy, terminated: bool, success: float, faults: int) -> RecordedEpisode:
    flags = np.zeros(len(copy.reward), dtype=np.bool_)
    flags[-1] = terminated
    return RecordedEpisode(
        task,
        np.stack(copy.obs),
        np.stack(copy.action),
        np.array(copy.reward, dtype=np.float32),
        flags,
        None if np.isnan(success) else success,
        faults,
    )


def _numpy(values: torch.Tensor) -> NDArray[np.float32]:
    """A copy of its own in main memory: environments may reuse their tensors."""
    return values.detach().to(dtype=torch.float32, device="cpu").numpy().copy()
