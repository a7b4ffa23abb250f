"""A replay buffer filled with some episodes of a dataset: what an offline run is diagnosed on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from flowmbpo.data.dataset.format import ROW_FIELDS
from flowmbpo.data.dataset.reader import Dataset
from flowmbpo.data.replay import ReplayBuffer
from flowmbpo.envs.contract import EnvStep

ENV_STEPS = 1000  # transitions of each environment index, about


def fill_with_episodes(buffer: ReplayBuffer, dataset: Dataset, names: Sequence[str]) -> ReplayBuffer:
    """Fill `buffer` (fresh) with whole episodes of task `names[env]` at each environment index, and return it.

    A task's episodes are taken evenly spaced over the dataset, other ones at each of its indices. All end with the
    shortest, because a buffer's environments advance together.
    """
    columns = [
        _episodes(dataset, name, list(names[:env]).count(name), list(names).count(name), buffer)
        for env, name in enumerate(names)
    ]
    steps = min(len(column["reward"]) for column in columns)
    fields = {name: torch.stack([column[name][:steps] for column in columns], dim=1) for name in columns[0]}
    before, action = fields.pop("before"), fields.pop("action")
    fields["success"] = torch.full_like(fields["reward"], torch.nan)
    buffer.start(before[0])
    for t in range(steps):
        step: Any = {name: values[t] for name, values in fields.items()}
        buffer.add(action[t], EnvStep(**step))
    return buffer


def _episodes(dataset: Dataset, name: str, turn: int, turns: int, buffer: ReplayBuffer) -> dict[str, Tensor]:
    """T transitions of the task `name`, [T, ...] padded to the buffer's widths: episodes one after another.

    Of the `turns` indices with this task it is number `turn`: at least one episode, then as many as fit.
    """
    task = dataset.task_id(name)
    record = dataset.tasks[task]
    steps = min(ENV_STEPS, buffer.rows // 2)
    share = -(-record.episodes // turns)  # of a small dataset no episode is taken twice
    wanted = min(max(steps * record.episodes // record.transitions, 1), share)
    places = [(turn + turns * place) * record.episodes // (turns * wanted) for place in range(wanted)]
    blocks = [dataset.read_episodes(task, range(place, place + 1)) for place in places]
    rows = {name: torch.from_numpy(np.concatenate([getattr(block, name) for block in blocks])) for name in ROW_FIELDS}
    rows["obs"] = nn.functional.pad(rows["obs"], (0, buffer.obs.shape[-1] - record.obs_dim))
    rows["action"] = nn.functional.pad(rows["action"], (0, buffer.action.shape[-1] - record.action_dim))
    rows["terminated"] = rows["terminated"].bool()
    final = torch.cat([torch.arange(len(block.obs)) == len(block.obs) - 1 for block in blocks])
    left = torch.nonzero(~final)[:, 0]  # rows that a transition leaves
    whole = {name: values[left] for name, values in rows.items()}
    whole |= {"before": whole["obs"], "final_obs": rows["obs"][left + 1]}
    whole["truncated"] = final[left + 1] & ~whole["terminated"]
    # What is acted on next: where an episode ended, the next one's first observation.
    whole["obs"] = torch.cat([whole["before"][1:], whole["final_obs"][-1:]])
    return whole
