"""Stretches of real transitions with their neighbours in time, from fresh episodes and from the replay buffer.

Letters: W transitions of a stretch, B stretches, O observation, A action.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from flowmbpo.data.replay import ReplayBuffer
from flowmbpo.evaluation.episodes import Episodes

BLOCK = 25
COMPARABLE = 64


@dataclass(frozen=True)
class Stretches:
    """B stretches of W transitions, time-major, none of which leaves its episode.

    `action[t]` leads from obs[t] to obs[t + 1] and earned `reward[t]`; `episode` (from 0 on) and `time` say
    where a stretch begins.
    """

    obs: Float[Tensor, "W+1 B O"]
    action: Float[Tensor, "W B A"]
    reward: Float[Tensor, "W B"]
    task: Int[Tensor, " B"]
    episode: Int[Tensor, " B"]
    time: Int[Tensor, " B"]

    def __len__(self) -> int:
        return len(self.task)

    def first(self, count: int) -> Stretches:
        """The first `count` stretches; they are in random order."""
        return Stretches(
            self.obs[:, :count],
            self.action[:, :count],
            self.reward[:, :count],
            self.task[:count],
            _ranked(self.episode[:count]),
            self.time[:count],
        )

    @property
    def block(self) -> Int[Tensor, " B"]:
        """Which of the pieces of `BLOCK` steps of an episode a stretch begins in, numbered from 0.

        Errors of neighbouring steps are alike; over this many steps that is mostly forgotten.
        """
        if not len(self):
            return self.time
        return _ranked(self.episode * (int(self.time.max()) // BLOCK + 1) + self.time // BLOCK)

    @property
    def comparable(self) -> bool:
        """Whether errors on these rows can be compared and predictions held out: enough rows, in two blocks or more."""
        return len(self) >= COMPARABLE and int(self.block.max()) > 0


def fresh_stretches(*recorded: Episodes, width: int, limit: int, generator: torch.Generator) -> Stretches:
    """At most `limit` stretches of the recorded episodes, drawn without replacement. Empty where none is long enough.

    All recordings are of one environment, so that their copies and widths agree.
    """
    longest = max(len(each.action) for each in recorded)

    def padded(x: Tensor, length: int) -> Tensor:
        return torch.cat([x, x.new_zeros(length - len(x), *x.shape[1:])])

    obs = torch.cat([padded(each.obs, longest + 1) for each in recorded], dim=1)
    action = torch.cat([padded(each.action, longest) for each in recorded], dim=1)
    reward = torch.cat([padded(each.reward, longest) for each in recorded], dim=1)
    length = torch.cat([each.length for each in recorded])
    task = torch.cat([each.task for each in recorded])
    start = torch.arange(longest, device=obs.device).unsqueeze(1)
    time, lane = _draw(start + width <= length, limit, generator)
    steps = time + torch.arange(width + 1, device=obs.device).unsqueeze(1)
    before = (steps[:-1], lane)
    return Stretches(obs[steps, lane], action[before], reward[before], task[lane], _ranked(lane), time)


def sampled_stretches(replay: ReplayBuffer, width: int, count: int, generator: torch.Generator) -> Stretches:
    """Whole stretches among `count` windows that the replay buffer hands out, as training gets them.

    They are drawn with replacement, so that some rows come twice; which episode a window is of is not
    known, and each counts as its own.
    """
    batch = replay.sample(count, width, generator)
    whole = batch.valid.all(0)
    number = torch.arange(int(whole.sum()), device=whole.device)
    return Stretches(
        batch.obs[:, whole],
        batch.action[:, whole],
        batch.reward[:, whole],
        batch.task[whole],
        number,
        torch.zeros_like(number),
    )


@dataclass(frozen=True)
class Part:
    """Part of a replay buffer: some of its lanes, and of those the rows between two shares of their age (0: oldest)."""

    lanes: tuple[int, ...]
    oldest: float = 0.0
    newest: float = 1.0


def stored_stretches(replay: ReplayBuffer, part: Part, width: int, limit: int, generator: torch.Generator) -> Stretches:
    """At most `limit` stretches that begin in a part of the replay buffer, drawn without replacement."""
    device = replay.device
    lanes = torch.tensor(part.lanes, device=device)
    count, head = replay.count[lanes], replay.head[lanes]
    position = torch.arange(int(count.max()), device=device).unsqueeze(1)  # oldest first
    stored = position < count
    # Rows beyond `count` may not be allocated; they are left out below.
    row = ((head - count + 1 + position) % replay.rows).clamp(max=len(replay.closed) - 1)
    ends = replay.closed[row, lanes] | ~stored
    episode = ends.long().cumsum(0) - ends.long()
    whole = torch.zeros_like(ends)
    if len(ends) > width:  # nothing ended between the first row and the last observation
        whole[:-width] = episode[:-width] == episode[width:]
    inside = (position >= part.oldest * count) & (position < part.newest * count)
    at, column = _draw(whole & ~ends & stored & inside, limit, generator)
    steps = at + torch.arange(width + 1, device=device).unsqueeze(1)
    cells = (row[steps, column], lanes[column])
    before = (row[steps[:-1], column], lanes[column])
    number = _ranked(episode[at, column] * len(part.lanes) + column)
    return Stretches(
        replay.obs[cells], replay.action[before], replay.reward[before], replay.task_ids[lanes[column]], number, at
    )


def newest_stretches(replay: ReplayBuffer, limit: int, generator: torch.Generator) -> Stretches:
    """About `limit` of the newest single transitions of the replay buffer, as many of each lane."""
    lanes = tuple(range(replay.num_envs))
    longest = int(replay.count.max())
    wanted = -(-limit // replay.num_envs) + 1  # the newest row of a lane has no transition yet
    oldest = max(0.0, 1.0 - wanted / longest) if longest else 0.0
    return stored_stretches(replay, Part(lanes, oldest), 1, limit, generator)


def _draw(usable: Bool[Tensor, "R N"], limit: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Row and lane of at most `limit` usable cells, without replacement."""
    row, lane = usable.nonzero(as_tuple=True)
    order = torch.randperm(len(row), generator=generator, device=generator.device).to(row.device)[:limit]
    return row[order], lane[order]


def _ranked(number: Int[Tensor, " B"]) -> Int[Tensor, " B"]:
    """The same labels, renumbered from 0."""
    ranks: Tensor = torch.unique(number, return_inverse=True)[1]
    return ranks
