"""What every toy system promises: widths, gradients, seeds, copies that do not meet, pictures."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from flowmbpo.envs.batch import BatchVectorEnv
from flowmbpo.envs.tasks import all_tasks, task_info
from flowmbpo.envs.toy.system import ToyBatch
from flowmbpo.envs.toy.systems import toy_system

NAMES = [task.name for task in all_tasks("toy")]
# Away from walls, edges and contacts, where the derivatives jump.
SMOOTH_STATES = {
    "toy-map-smooth": [[-0.7], [0.4]],
    "toy-map-inelastic": [[-0.7], [0.4]],
    "toy-map-fold": [[-0.7], [0.4]],
    "toy-lqr": [[0.1, -0.2, 0.3, -0.4], [0.5, 0.1, -0.1, 0.2]],
    "toy-two-goals": [[0.3, -0.2], [-0.9, 0.1]],
    "toy-bounce-soft": [[-0.2, 0.3], [1.0, 0.5]],
    "toy-bounce-stiff": [[-0.02, -1.0], [1.0, 0.5]],
    "toy-gust": [[-0.3], [0.6]],
    "toy-rare-push": [[-0.3], [0.6]],
    "toy-skew-push": [[-0.3], [0.6]],
    "toy-pillar": [[-0.3], [0.4]],
    "toy-slip": [[0.5, -0.1], [1.1, 0.5]],
}


def env_of(name: str, num_envs: int) -> BatchVectorEnv:
    return BatchVectorEnv(ToyBatch(toy_system(task_info(name)), num_envs))


def actions(env: BatchVectorEnv, steps: int) -> torch.Tensor:
    rng = torch.Generator().manual_seed(0)
    return 2 * torch.rand(steps, env.num_envs, env.spec.action_dim, generator=rng) - 1


def follow(env: BatchVectorEnv, table: torch.Tensor) -> torch.Tensor:
    """Observations and rewards along `table` [T, N, A], as [T, N, O+1]."""
    steps = [env.step(action) for action in table]
    return torch.stack([torch.cat((step.final_obs, step.reward.unsqueeze(-1)), dim=-1) for step in steps])


@pytest.mark.parametrize("name", NAMES)
def test_widths_are_those_of_the_table(name):
    task, system = task_info(name), toy_system(task_info(name))
    state = torch.tensor([system.start(np.random.default_rng(0))] * 3)
    assert state.shape == (3, system.state_dim)
    reached, reward = system.transition(state, torch.zeros(3, task.action_dim), torch.full((3, system.noise_dim), 0.5))
    assert reached.shape == state.shape
    assert reward.shape == (3,)
    assert system.observe(state).shape == (3, task.obs_dim)
    assert not task.can_terminate


@pytest.mark.parametrize("name", NAMES)
def test_observations_are_not_the_states_memory(name):
    system = toy_system(task_info(name))
    state = torch.tensor([system.start(np.random.default_rng(0))])
    before = state.clone()
    system.observe(state).fill_(7.0)
    assert state.equal(before)


@pytest.mark.parametrize("name", NAMES)
def test_gradients_flow_through_transition_and_observation(name):
    task, system = task_info(name), toy_system(task_info(name))
    default = torch.linspace(-0.7, 0.8, 2 * system.state_dim, dtype=torch.float64).reshape(2, -1).tolist()
    state = torch.tensor(SMOOTH_STATES.get(name, default), dtype=torch.float64, requires_grad=True)
    action = torch.linspace(-0.2, 0.3, 2 * task.action_dim, dtype=torch.float64).reshape(2, -1).requires_grad_()
    noise = torch.full((2, system.noise_dim), 0.6, dtype=torch.float64)

    def seen(state: torch.Tensor, action: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        reached, reward = system.transition(state, action, noise)
        return system.observe(reached), reward

    assert torch.autograd.gradcheck(seen, (state, action))


@pytest.mark.parametrize("name", NAMES)
def test_an_episode_depends_on_its_seed_and_actions_alone(name):
    env, alone = env_of(name, 5), env_of(name, 1)
    assert alone.reset(3)[0].equal(env.reset(3)[0])
    table = actions(env, env.spec.tasks[0].episode_length + 3)
    found = follow(env, table)
    assert follow(alone, table[:, :1])[:, 0].equal(found[:, 0])
    env.reset(3)
    table[:, 1:] = 0.0
    assert follow(env, table[:30])[:, 0].equal(found[:30, 0])


@pytest.mark.parametrize("name", NAMES)
def test_seeds_copies_and_episodes_differ(name):
    env = env_of(name, 2)
    length = env.spec.tasks[0].episode_length
    first = env.reset(1)
    assert not first[0].equal(first[1])
    found = follow(env, torch.zeros(length + 5, 2, env.spec.action_dim))
    assert not found[length:].equal(found[:5])
    assert not env.reset(2).equal(first)


# One of each kind: with noise and without, of several physics steps and of one. The contract's check asks all.
@pytest.mark.parametrize("name", ["toy-pendulum-push", "toy-cartpole-hidden", "toy-lqr", "toy-gust"])
def test_a_saved_state_goes_on_bit_equally(name):
    env, other = env_of(name, 3), env_of(name, 3)
    length = env.spec.tasks[0].episode_length
    table = actions(env, length + 15)
    env.reset(5)
    follow(env, table[:10])
    saved = env.state_dict()
    found = follow(env, table[10:])
    other.load_state_dict(saved)
    assert follow(other, table[10:]).equal(found)


@pytest.mark.parametrize("name", NAMES)
def test_the_picture_follows_the_state(name):
    env = env_of(name, 2)
    env.reset(0)
    before = env.render(1)
    for _ in range(5):
        env.step(torch.ones(2, env.spec.action_dim))
    after = env.render(1)
    assert before.shape == after.shape == (240, 320, 3)
    assert before.dtype == "uint8"
    assert (before != after).any()
    assert len(np.unique(before.astype(np.int32) @ (65536, 256, 1))) > 3  # colours
