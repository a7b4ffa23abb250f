"""What every vector environment promises, on every kind there is."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from flowmbpo.config.task import TaskConfig
from flowmbpo.envs.contract import VectorEnv
from flowmbpo.envs.make import make_env

NUM_ENVS = 3
KINDS = {
    "toy pendulum": ("toy-pendulum-swingup", None),
    "toy cart-pole": ("toy-cartpole-swingup", None),
    "dm_control in this process": ("pendulum-swingup", 0),
    "dm_control in workers": ("pendulum-swingup", 2),
}


@pytest.fixture(scope="module", params=KINDS)
def kind(request) -> tuple[str, int | None]:
    return KINDS[request.param]


@pytest.fixture(scope="module")
def env(kind) -> Iterator[VectorEnv]:
    name, workers = kind
    env = make_env(TaskConfig(name=name), NUM_ENVS, workers)
    yield env
    env.close()


@pytest.fixture(scope="module")
def other(kind) -> Iterator[VectorEnv]:
    """A second instance of the same task, always in this process."""
    env = make_env(TaskConfig(name=kind[0]), NUM_ENVS, 0)
    yield env
    env.close()


def actions(env: VectorEnv, steps: int, seed: int = 0) -> torch.Tensor:
    rng = torch.Generator().manual_seed(seed)
    return 2 * torch.rand(steps, env.num_envs, env.spec.action_dim, generator=rng) - 1


def follow(env: VectorEnv, table: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """All observations (first the reached, then the next) and rewards along `table` [T, N, A]."""
    steps = [env.step(action) for action in table]
    return torch.stack([torch.cat((step.final_obs, step.obs)) for step in steps]), torch.stack(
        [step.reward for step in steps]
    )


def test_shapes_and_types(env):
    obs = env.reset(0)
    step = env.step(actions(env, 1)[0])
    assert env.num_envs == NUM_ENVS
    assert env.task_ids.tolist() == [0] * NUM_ENVS
    for tensor in (obs, step.obs, step.final_obs):
        assert tensor.shape == (NUM_ENVS, env.spec.obs_dim)
        assert tensor.dtype == torch.float32
    for tensor in (step.reward, step.success):
        assert tensor.shape == (NUM_ENVS,)
        assert tensor.dtype == torch.float32
    for tensor in (step.terminated, step.truncated):
        assert tensor.shape == (NUM_ENVS,)
        assert tensor.dtype == torch.bool
    assert step.success.isnan().all()


def test_time_limit_truncates_and_the_next_episode_starts(env):
    env.reset(0)
    length = env.spec.tasks[0].episode_length
    for count, action in enumerate(actions(env, length + 1), start=1):
        step = env.step(action)
        assert not step.terminated.any()
        assert step.truncated.tolist() == [count == length] * NUM_ENVS
        assert step.done.equal(step.truncated)
        assert step.obs.equal(step.final_obs) is (count != length)


def test_equal_seeds_give_bit_equal_episodes(env, other):
    length = env.spec.tasks[0].episode_length
    table = actions(env, length + 5)
    first = env.reset(7)
    obs, reward = follow(env, table)
    assert env.reset(7).equal(first)
    assert other.reset(7).equal(first)
    again_obs, again_reward = follow(other, table)
    assert again_obs.equal(obs)
    assert again_reward.equal(reward)


def test_seeds_copies_and_episodes_differ(env):
    first = env.reset(1)
    assert not env.reset(2).equal(first)
    assert not first[0].equal(first[1])
    env.reset(1)
    for action in actions(env, env.spec.tasks[0].episode_length):
        step = env.step(action)
    assert not (step.obs == first).all(dim=-1).any()


def test_an_episode_does_not_depend_on_the_other_copies(env, kind):
    alone = make_env(TaskConfig(name=kind[0]), 1, 0)
    assert alone.reset(3)[0].equal(env.reset(3)[0])
    table = actions(env, alone.spec.tasks[0].episode_length + 3)
    obs, reward = follow(env, table)
    lone_obs, lone_reward = follow(alone, table[:, :1])
    assert lone_obs[:, 0].equal(obs[:, 0])
    assert lone_reward[:, 0].equal(reward[:, 0])


def test_a_saved_state_goes_on_bit_equally_past_the_end(env, other):
    """At the second episode's first observation and in its middle; once in this instance and once in another."""
    length, middle = env.spec.tasks[0].episode_length, 40
    env.reset(5)
    start = follow(env, actions(env, length, seed=1))[0][-1][NUM_ENVS:]
    states = [(0, start, env.state_dict())]
    table = actions(env, length + 10, seed=2)
    obs, reward = follow(env, table[:middle])
    states.append((middle, obs[-1][NUM_ENVS:], env.state_dict()))
    rest_obs, rest_reward = follow(env, table[middle:])
    obs, reward = torch.cat((obs, rest_obs)), torch.cat((reward, rest_reward))
    for target, far in ((other, 0), (env, 1)):
        for number, (at, current, saved) in enumerate(states):
            steps = slice(at, length + 10 if number == far else at + 20)
            assert target.load_state_dict(saved).equal(current)
            again_obs, again_reward = follow(target, table[steps])
            assert again_obs.equal(obs[steps])
            assert again_reward.equal(reward[steps])


def test_a_saved_state_holds_plain_data_and_no_live_memory(env, tmp_path):
    env.reset(5)
    follow(env, actions(env, 4))
    saved = env.state_dict()
    torch.save(saved, tmp_path / "state.pt")
    follow(env, actions(env, 4))
    stored = torch.load(tmp_path / "state.pt", weights_only=True)
    assert env.load_state_dict(stored).equal(env.load_state_dict(saved))


def test_a_state_of_another_shape_is_refused(env, kind):
    small = make_env(TaskConfig(name=kind[0]), 1, 0)
    small.reset(0)
    with pytest.raises(ValueError, match=f"1 x '{kind[0]}'"):
        env.load_state_dict(small.state_dict())


def test_actions_of_a_wrong_shape_or_value_are_refused(env):
    env.reset(0)
    good = actions(env, 1)[0]
    with pytest.raises(ValueError, match="shape"):
        env.step(good[:-1])
    with pytest.raises(ValueError, match="shape"):
        env.step(good[:, 0])
    for value in (torch.nan, torch.inf):
        bad = good.clone()
        bad[1] = value
        with pytest.raises(ValueError, match="environment 1 is not finite"):
            env.step(bad)
    expected = env.step(good).obs
    env.reset(0)
    assert env.step(good).obs.equal(expected)


def test_actions_are_clipped_to_the_unit_box(env):
    env.reset(0)
    clipped = env.step(torch.ones(NUM_ENVS, env.spec.action_dim)).obs
    env.reset(0)
    assert env.step(torch.full((NUM_ENVS, env.spec.action_dim), 1e30)).obs.equal(clipped)


def test_results_are_not_overwritten_by_the_next_step(env):
    env.reset(0)
    first, second = actions(env, 2)
    step = env.step(first)
    kept = (step.obs.clone(), step.reward.clone(), step.truncated.clone())
    env.step(second)
    assert step.obs.equal(kept[0])
    assert step.reward.equal(kept[1])
    assert step.truncated.equal(kept[2])


def test_a_step_before_the_first_reset_is_refused(kind):
    env = make_env(TaskConfig(name=kind[0]), 1, 0)
    with pytest.raises(ValueError, match="reset"):
        env.step(torch.zeros(1, env.spec.action_dim))
