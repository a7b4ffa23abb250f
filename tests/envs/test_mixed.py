"""Task sets whose simulators differ: one batch over worker processes and batches in this process."""

from __future__ import annotations

import pytest
import torch

from flowmbpo.config.task import TaskConfig
from flowmbpo.envs.make import make_env
from flowmbpo.envs.mixed import MixedVectorEnv
from flowmbpo.errors import ConfigError

TASKS = ("toy-pendulum-swingup", "pendulum-swingup", "cartpole-swingup", "toy-cartpole-swingup")


def make(num_envs=9, seed=0):
    return make_env(TaskConfig(name=None, set="mixed", tasks=TASKS, num_envs=num_envs), workers=0, seed=seed)


def action(env, seed=0):
    return torch.rand(env.num_envs, 1, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def test_every_copy_shows_its_own_task():
    env = make()
    assert isinstance(env, MixedVectorEnv)
    assert (env.spec.label, env.spec.obs_dim) == ("mixed", 5)
    obs = env.reset(0)
    ids = env.task_ids.tolist()
    assert set(ids) == {0, 1, 2, 3}
    for row, task in enumerate(ids):
        width = env.spec.tasks[task].obs_dim
        assert (obs[row, width:] == 0).all()
        assert obs[row, :width].abs().sum() > 0
    step = env.step(action(env))
    assert step.obs.shape == (9, 5)
    assert step.reward.isfinite().all()
    env.close()


def test_each_task_ends_at_its_own_limit():
    env = make(num_envs=4)
    env.reset(0)
    ends = {}
    for count in range(1, 501):
        step = env.step(torch.zeros(4, 1))
        for row in step.truncated.nonzero().flatten().tolist():
            ends.setdefault(env.spec.tasks[int(env.task_ids[row])].name, count)
    assert ends == dict(zip(TASKS, (100, 500, 500, 250), strict=True))
    env.close()


def test_a_mixed_batch_is_reproducible_and_restorable():
    first, second = make(5), make(5)
    assert first.reset(4).equal(second.reset(4))
    for count in range(30):
        assert first.step(action(first, count)).obs.equal(second.step(action(second, count)).obs)
    fresh = make(5)
    fresh.load_state_dict(first.state_dict())
    for count in range(30, 60):
        a, b = first.step(action(first, count)), fresh.step(action(fresh, count))
        assert a.obs.equal(b.obs) and a.reward.equal(b.reward)
    other = make(5, seed=1)
    with pytest.raises(ValueError, match="assigns the tasks of 'mixed' to other copies"):
        other.load_state_dict(first.state_dict())


def test_a_copy_of_the_batch_is_drawn_by_its_part():
    env = make(num_envs=4)
    env.reset(0)
    row = env.task_ids.tolist().index(0)
    assert env.render(row).shape == (240, 320, 3)
    env.close()


def test_a_shipped_set_cannot_be_redefined():
    with pytest.raises(ConfigError, match=r"task.set: 'mini3' is a shipped set; give yours another name"):
        make_env(TaskConfig(name=None, set="mini3", tasks=TASKS))
