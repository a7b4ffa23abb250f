"""Several tasks in one batch: who runs what, padding, masks, limits, saved states."""

from __future__ import annotations

import collections

import pytest
import torch
from scripted_simulator import NARROW, TASK, NarrowSimulator, ScriptedSimulator

from flowmbpo.envs.episodes import assign_tasks
from flowmbpo.envs.processes.vector import WorkerVectorEnv
from flowmbpo.errors import ConfigError
from flowmbpo.spec import EnvSpec

SPEC = EnvSpec((TASK, NARROW), name="pair")
IDS = [0, 1, 1, 0]


def make(workers=0, ids=IDS):
    return WorkerVectorEnv(SPEC, [ScriptedSimulator, NarrowSimulator], ids, workers)


@pytest.mark.parametrize(("copies", "counts"), [(6, {3}), (7, {3, 4}), (2, {1})])
def test_tasks_are_shared_out_evenly_and_by_the_seed(copies, counts):
    ids = assign_tasks(SPEC, copies, seed=1)
    assert set(collections.Counter(ids).values()) <= counts
    assert set(ids) == {0, 1}
    assert ids == assign_tasks(SPEC, copies, seed=1)


def test_another_seed_gives_another_order_and_other_odd_copies():
    spec = EnvSpec(tuple(TASK for _ in range(10)), name="ten")
    orders = [assign_tasks(spec, 15, seed) for seed in range(20)]
    assert len({tuple(order) for order in orders}) == 20
    doubled = {tuple(sorted(task for task, n in collections.Counter(order).items() if n == 2)) for order in orders}
    assert len(doubled) > 10


def test_a_set_needs_a_copy_for_every_task():
    with pytest.raises(ConfigError, match=r"task.num_envs: 1 copies cannot hold the 2 tasks of 'pair'; use at least 2"):
        assign_tasks(SPEC, 1, seed=0)


@pytest.mark.parametrize("workers", [0, 2])
def test_narrow_tasks_are_padded_and_keep_their_own_length(workers):
    env = make(workers)
    obs = env.reset(0)
    assert env.task_ids.tolist() == IDS
    assert obs.shape == (4, 3)
    assert obs[1].tolist() == [0, 0, 0]
    action = torch.tensor([[0.1, 0.2], [0.3, 0.9], [0.4, -0.9], [0.5, 0.6]])
    step = env.step(action)
    assert step.reward.tolist() == pytest.approx([2.0, 0.3, 0.4, 6.0])
    assert step.obs[1].tolist() == pytest.approx([1, 0.3, 0])
    env.step(action)
    step = env.step(action)
    assert step.truncated.tolist() == [False, True, True, False]
    assert step.final_obs[2].tolist() == pytest.approx([3, 0.4, 0])
    env.step(action)
    assert env.step(action).truncated.tolist() == [True, False, False, True]
    env.close()


def test_masked_actions_influence_nothing():
    plain, noisy = make(), make()
    plain.reset(5)
    noisy.reset(5)
    generator = torch.Generator().manual_seed(0)
    for _ in range(12):
        action = torch.rand(4, 2, generator=generator)
        other = action.clone()
        other[[1, 2], 1] = torch.rand(2, generator=generator) * 2 - 1
        a, b = plain.step(action), noisy.step(other)
        assert a.obs.equal(b.obs)
        assert a.final_obs.equal(b.final_obs)
        assert a.reward.equal(b.reward)
    saved, other = plain.state_dict(), noisy.state_dict()
    assert all(x.equal(y) for x, y in zip(saved["actions"], other["actions"], strict=True))


def test_a_mixed_batch_is_saved_and_restored_bit_for_bit():
    env, action = make(), torch.full((4, 2), 0.25)
    env.reset(3)
    for _ in range(4):
        obs = env.step(action).obs
    fresh = make(workers=2)
    assert fresh.load_state_dict(env.state_dict()).equal(obs)
    for _ in range(7):
        assert fresh.step(action).obs.equal(env.step(action).obs)
    with pytest.raises(ValueError, match="assigns the tasks of 'pair' to other copies"):
        make(ids=[1, 0, 1, 0]).load_state_dict(env.state_dict())
    fresh.close()


def test_each_copy_is_drawn_by_its_own_task():
    env = make()
    env.reset(0)
    env.step(torch.zeros(4, 2))
    assert int(env.render(1)[0, 0, 0]) == 101
    assert int(env.render(3)[0, 0, 0]) == 1
    env.close()
