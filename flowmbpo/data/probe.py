"""A replay buffer filled with some episodes of a dataset: what an offline run is diagnosed on."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from flowmbpo.data.dataset.reader import Dataset
from flowmbpo.data.replay import ReplayBuffer
from flowmbpo.envs.contract import EnvStep

LANE_STEPS = 1000  # steps of each lane, about


def fill_with_episodes(buffer: ReplayBuffer, dataset: Dataset, names: Sequence[str]) -> ReplayBuffer:
    """Fill `buffer` (fresh) with whole episodes of `names[lane]` in each lane, and return it.

    A task's episodes are taken evenly spaced over the dataset, other ones in each of its lanes. All lanes
    end with the shortest, because a buffer's lanes advance together.
    """
    streams = []
    for lane, name in enumerate(names):
        turn, turns = list(names[:lane]).count(name), list(names).count(name)
        streams.append(_stream(dataset, name, turn, turns, buffer))
    steps = min(len(stream) for stream in streams)
    buffer.start(torch.stack([stream.obs[0] for stream in streams]))
    for t in range(steps):
        done = torch.stack([stream.done[t] for stream in streams])
        terminated = torch.stack([stream.terminated[t] for stream in streams])
        buffer.add(
            torch.stack([stream.action[t] for stream in streams]),
            EnvStep(
                obs=torch.stack([stream.following(t) for stream in streams]),
                reward=torch.stack([stream.reward[t] for stream in streams]),
                terminated=terminated,
                truncated=done & ~terminated,
                final_obs=torch.stack([stream.final_obs[t] for stream in streams]),
                success=torch.full((len(streams),), torch.nan),
            ),
        )
    return buffer


class _Lane:
    """T transitions of whole episodes, one after another, padded to the buffer's widths."""

    def __init__(self, obs_dim: int, action_dim: int) -> None:
        self._widths = (obs_dim, action_dim)
        self.obs = torch.empty(0, obs_dim)
        self.final_obs = torch.empty(0, obs_dim)
        self.action = torch.empty(0, action_dim)
        self.reward = torch.empty(0)
        self.terminated = torch.empty(0, dtype=torch.bool)
        self.done = torch.empty(0, dtype=torch.bool)

    def __len__(self) -> int:
        return len(self.reward)

    def append(self, obs: Tensor, action: Tensor, reward: Tensor, terminated: Tensor) -> None:
        """One episode: obs [L + 1, O], action [L, A], reward [L], terminated [L]."""
        obs = nn.functional.pad(obs, (0, self._widths[0] - obs.shape[1]))
        self.obs = torch.cat([self.obs, obs[:-1]])
        self.final_obs = torch.cat([self.final_obs, obs[1:]])
        self.action = torch.cat([self.action, nn.functional.pad(action, (0, self._widths[1] - action.shape[1]))])
        self.reward = torch.cat([self.reward, reward])
        self.terminated = torch.cat([self.terminated, terminated])
        last = torch.arange(len(reward)) == len(reward) - 1
        self.done = torch.cat([self.done, last])

    def following(self, t: int) -> Tensor:
        """What is acted on after transition t: where the episode ended, the next one's first observation."""
        return self.obs[t + 1] if t + 1 < len(self) else self.final_obs[t]


def _stream(dataset: Dataset, name: str, turn: int, turns: int, buffer: ReplayBuffer) -> _Lane:
    """Lane `turn` of the `turns` that hold the task `name`: at least one episode, then as many as fit."""
    task = dataset.task_id(name)
    record = dataset.tasks[task]
    steps = min(LANE_STEPS, buffer.rows // 2)
    share = -(-record.episodes // turns)  # of a small dataset no episode is taken twice in a lane
    wanted = min(max(steps * record.episodes // record.transitions, 1), share)
    lane = _Lane(buffer.obs.shape[-1], buffer.action.shape[-1])
    for place in range(wanted):
        episode = (turn + turns * place) * record.episodes // (turns * wanted)
        block = dataset.read_episodes(task, range(episode, episode + 1))
        length = int(block.length[0])
        lane.append(
            torch.from_numpy(block.obs),
            torch.from_numpy(block.action[:length]),
            torch.from_numpy(block.reward[:length]),
            torch.from_numpy(block.terminated[:length].astype(bool)),
        )
    return lane
