"""Noise, restarts and endings of a batch of toy systems."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from flowmbpo.envs.batch import BatchVectorEnv
from flowmbpo.envs.episodes import episode_seed
from flowmbpo.envs.tasks import task_info
from flowmbpo.envs.toy.system import ToyBatch
from flowmbpo.envs.toy.systems import toy_system


def gust(num_envs: int, length: int = 100) -> ToyBatch:
    return ToyBatch(toy_system(dataclasses.replace(task_info("toy-gust"), episode_length=length)), num_envs)


def seeds(count: int, first: int = 0) -> list[np.random.SeedSequence]:
    return [episode_seed(0, first + index, 0) for index in range(count)]


def test_noise_is_uniform_and_independent_over_steps_and_copies():
    batch = gust(1000)
    batch.start(range(1000), seeds(1000))
    noise = batch.state_dict()["noise"][..., 0].double()
    assert noise.shape == (1000, 100)
    assert 0.0 <= noise.min().item() < 1e-3 < 0.999 < noise.max().item() < 1.0
    assert noise.mean().item() == pytest.approx(0.5, abs=4 * (1 / 12e5) ** 0.5)
    assert noise.var().item() == pytest.approx(1 / 12, abs=4 * (1 / 180e5) ** 0.5)  # var of (u - 1/2)^2 is 1/180
    centred = noise - 0.5
    for product in (centred[:, 1:] * centred[:, :-1], centred[1:] * centred[:-1]):
        assert product.mean().item() == pytest.approx(0.0, abs=4 / 12 / product.numel() ** 0.5)


def test_noise_is_the_episodes_generator_after_its_start():
    batch = gust(2, length=7)
    batch.start([0, 1], seeds(2))
    rng = np.random.default_rng(episode_seed(0, 1, 0))
    start = rng.uniform(0.2, 1.7)
    state = batch.state_dict()
    assert state["state"][1].item() == pytest.approx(start)
    assert state["noise"][1, :, 0].tolist() == rng.random(7, dtype=np.float32).tolist()


def test_each_step_takes_its_own_noise():
    batch = gust(4, length=30)
    batch.start(range(4), seeds(4))
    noise = batch.state_dict()["noise"]
    state = batch.observe()[:, :1]
    for step in range(30):
        reached, _ = batch.system.transition(state, torch.zeros(4, 1), noise[:, step])
        state = batch.step(torch.zeros(4, 1)).obs[:, :1]
        assert state.equal(reached)


def test_stepping_past_the_noise_is_refused():
    batch = gust(1, length=2)
    batch.start([0], seeds(1))
    for _ in range(2):
        batch.step(torch.zeros(1, 1))
    with pytest.raises(IndexError):
        batch.step(torch.zeros(1, 1))


def test_a_restart_leaves_the_other_copies_where_they_are():
    batch, still = gust(3), gust(3)
    for each in (batch, still):
        each.start(range(3), seeds(3))
        for _ in range(5):
            each.step(torch.zeros(3, 1))
    batch.start([1], seeds(1, first=9))
    fresh = gust(1)
    fresh.start([0], seeds(1, first=9))
    assert batch.observe()[1].equal(fresh.observe()[0])
    for _ in range(20):
        obs = batch.step(torch.zeros(3, 1)).obs
        assert obs[[0, 2]].equal(still.step(torch.zeros(3, 1)).obs[[0, 2]])
        assert obs[1].equal(fresh.step(torch.zeros(1, 1)).obs[0])


def test_a_saved_state_is_a_copy():
    batch = gust(2)
    batch.start(range(2), seeds(2))
    saved = batch.state_dict()
    first = [value.clone() for value in saved.values()]
    for _ in range(2):
        batch.step(torch.ones(2, 1))
        batch.start([0], seeds(1, first=5))
        assert all(value.equal(before) for value, before in zip(saved.values(), first, strict=True))
        batch.load_state_dict(saved)


def test_a_copys_description_names_task_step_and_state():
    batch = gust(2)
    batch.start(range(2), seeds(2))
    batch.load_state_dict({**batch.state_dict(), "state": torch.tensor([[0.25], [0.5]])})
    assert batch.describe(1) == "toy-gust: before the step: 0 steps done, state [0.5]"


def test_description_after_a_step_is_the_state_before_it():
    batch = gust(2)
    batch.start(range(2), seeds(2))
    for done in range(3):
        before = batch.state_dict()["state"][1].tolist()
        batch.step(torch.ones(2, 1))
        assert batch.describe(1) == f"toy-gust: before the step: {done} steps done, state {before}"
        assert batch.state_dict()["state"][1].tolist() != before
    batch.start([1], seeds(1, first=5))
    assert batch.describe(1).endswith(f"0 steps done, state {batch.state_dict()['state'][1].tolist()}")


def test_a_broken_copys_dump_holds_the_state_that_broke():
    env = BatchVectorEnv(ToyBatch(toy_system(task_info("toy-lqr")), 2))
    env.reset(0)
    saved = env.state_dict()
    saved["simulator"]["state"][1] = torch.tensor([3e7, 0.0, -2.5, 1.0])
    env.load_state_dict(saved)
    (fault,) = env.step(torch.ones(2, 2)).faults
    assert fault.state == "toy-lqr: before the step: 0 steps done, state [30000000.0, 0.0, -2.5, 1.0]"
