"""Small files of the published formats, made with the packages that made the real ones."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tensordict import TensorDict

from flowmbpo.data.convert.source import set_tasks

ROWS = {"mt30": 501, "mt80": 101}
OBS = {"mt30": 24, "mt80": 39}


def make_chunk(tasks, *, set_name="mt30", seed=0, dtype=torch.float32):
    """A chunk as TD-MPC2 publishes it: `tasks` [E], zero padding, NaN at index 0 of action and reward."""
    generator = torch.Generator().manual_seed(seed)
    rows, columns = ROWS[set_name], set_tasks(set_name)
    shape = (len(tasks), rows)
    obs = torch.randn(*shape, OBS[set_name], generator=generator)
    action = torch.rand(*shape, 6, generator=generator) * 2 - 1
    reward = torch.rand(*shape, generator=generator)
    for episode, task in enumerate(tasks):
        obs[episode, :, columns[task].obs_dim :] = 0.0
        action[episode, :, columns[task].action_dim :] = 0.0
    action[:, 0] = torch.nan
    reward[:, 0] = torch.nan
    ids = torch.tensor(tasks, dtype=torch.int64)[:, None].expand(shape).contiguous()
    content = {"obs": obs.to(dtype), "action": action.to(dtype), "reward": reward.to(dtype), "task": ids}
    return TensorDict(content, batch_size=shape)


def make_demos(lengths, *, obs_dim, action_dim, seed=0, ended=()):
    """MMBench demonstrations, flat: `lengths` transitions each, widths 128 and 16; `ended` terminate at their end."""
    generator = torch.Generator().manual_seed(seed)
    parts = []
    for episode, length in enumerate(lengths):
        rows = length + 1
        obs, action = torch.zeros(rows, 128), torch.zeros(rows, 16)
        obs[:, :obs_dim] = torch.randn(rows, obs_dim, generator=generator)
        action[:, :action_dim] = torch.rand(rows, action_dim, generator=generator) * 2 - 1
        reward = torch.rand(rows, generator=generator)
        action[0], reward[0] = torch.nan, torch.nan
        terminated = torch.zeros(rows, dtype=torch.bool)
        terminated[-1] = episode in ended
        ids = torch.full((rows,), episode, dtype=torch.int64)
        content = {"obs": obs, "action": action, "reward": reward, "value": reward.clone(), "terminated": terminated}
        parts.append(TensorDict({**content, "episode": ids}, batch_size=(rows,)))
    return torch.cat(parts)


def read_stored(dataset):
    """Every stored episode by its id: (task id, obs, action, reward, terminated), own widths, final row apart."""
    found = {}
    for task, record in enumerate(dataset.tasks):
        block = dataset.read_episodes(task, range(record.episodes))
        for start, length, number in zip(block.start, block.length, block.id, strict=True):
            rows, steps = slice(start, start + length + 1), slice(start, start + length)
            assert number not in found
            content = (block.obs[rows], block.action[steps], block.reward[steps], block.terminated[steps])
            found[int(number)] = (task, *content)
    return found


def align_by_hand(chunks, set_name="mt30"):
    """(task, obs, action, reward) of every episode of `chunks`: index 0 of action and reward left out."""
    columns = set_tasks(set_name)
    for content in chunks:
        for episode in range(content.shape[0]):
            task = int(content["task"][episode, 0])
            own = columns[task]
            yield (
                task,
                content["obs"][episode, :, : own.obs_dim].float().numpy(),
                content["action"][episode, 1:, : own.action_dim].float().numpy(),
                content["reward"][episode, 1:].float().numpy(),
            )


def check_equal(dataset, chunks, set_name="mt30"):
    """The dataset holds exactly the episodes of `chunks`, each under its number, bit for bit."""
    stored = read_stored(dataset)
    expected = list(align_by_hand(chunks, set_name))
    assert sorted(stored) == list(range(len(expected)))
    for number, (task, *arrays) in enumerate(expected):
        assert stored[number][0] == task
        for found, wanted in zip(stored[number][1:4], arrays, strict=True):
            np.testing.assert_array_equal(found, wanted)
        assert not stored[number][4].any()


@pytest.fixture
def chunk():
    return make_chunk


@pytest.fixture
def demos():
    return make_demos


@pytest.fixture
def stored():
    return read_stored


@pytest.fixture
def assert_holds_exactly():
    return check_equal


@pytest.fixture
def folder_of(tmp_path):
    """A function that saves chunks as chunk_0.pt, chunk_1.pt, ... and returns their folder."""

    def save(*chunks, name="source"):
        folder = tmp_path / name
        folder.mkdir()
        for number, content in enumerate(chunks):
            torch.save(content, folder / f"chunk_{number}.pt")
        return folder

    return save
