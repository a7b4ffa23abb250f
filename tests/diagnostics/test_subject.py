"""A subject's draws and experience: repeatable, independent of each other, and from seeds of their own."""

import pytest
import torch

from flowmbpo.data.replay import ReplayBuffer
from flowmbpo.diagnostics.subject import ENV_SEED_BASE, EXPLORED_SHARE, Subject
from flowmbpo.envs.make import make_env
from flowmbpo.errors import DataError
from flowmbpo.runs.evaluate import EVALUATION_SEED_BASE, LARGEST_SEED, SEED_BASE


@pytest.fixture
def subject(make_subject):
    return make_subject()


def with_buffer(subject, only=None):
    env = make_env(subject.config.task)
    replay = ReplayBuffer(1000, env.num_envs, env.spec.obs_dim, env.spec.action_dim, env.task_ids)
    replay.start(env.reset(0))
    for _ in range(5):
        action = torch.full((env.num_envs, 1), 0.5)
        replay.add(action, env.step(action))
    options = {"device": subject.device, "seed": subject.seed, "make_env": subject.make_env, "episode_count": 2}
    return Subject(subject.agent, subject.config, replay=replay, only=only, **options)


def test_draws_depend_on_seed_and_purpose_alone(make_subject):
    first, again, other = make_subject(seed=1), make_subject(seed=1), make_subject(seed=2)
    first.generator("b")

    def draw(subject, purpose):
        return torch.rand(3, generator=subject.generator(purpose)).tolist()

    assert draw(first, "a") == draw(again, "a")
    assert draw(first, "a") != draw(first, "b")
    assert draw(first, "a") != draw(other, "a")


def test_largest_seed_fits_a_generator(make_subject):
    seeds = (LARGEST_SEED - 1, LARGEST_SEED)
    draws = [torch.rand(3, generator=make_subject(seed=seed).generator("episodes")) for seed in seeds]
    assert not torch.equal(*draws)


def test_episodes_are_the_same_whatever_was_measured_before(make_subject):
    first, second = make_subject(), make_subject()
    second.explored  # noqa: B018
    assert torch.equal(first.episodes.obs, second.episodes.obs)
    assert torch.equal(first.explored.action, second.explored.action)
    assert first.episodes is first.episodes


def test_explored_episodes_mix_in_uniform_actions(make_subject):
    subject = make_subject()
    with torch.no_grad():  # a policy that never moves: whatever does is exploration
        subject.agent.act = lambda obs, task, generator: torch.zeros(len(obs), 1)
    action = subject.explored.action
    moved = action != 0
    # 200 steps: the share strays by .032 (one standard deviation)
    assert float(moved.float().mean()) == pytest.approx(EXPLORED_SHARE, abs=0.13)
    assert action.abs().max() <= 1.0 and float(action[moved].std()) > 0.4


def test_seeds_of_episodes_are_used_by_nobody_else():
    """The upper 32-bit word tells them from training (below 2^30 copies), evaluation and periodic evaluation."""
    words = {seed >> 32 for seed in (ENV_SEED_BASE, ENV_SEED_BASE + (1 << 32) + LARGEST_SEED)}
    assert words == {2**30 + 16, 2**30 + 17}
    assert SEED_BASE >> 32 == (SEED_BASE + LARGEST_SEED) >> 32 == 2**30
    assert EVALUATION_SEED_BASE >> 32 >= 3 * 2**29


def test_windows_come_from_the_buffer_where_there_is_one(subject):
    own = with_buffer(subject)
    assert own.windows is own.replay and own.windows_source == "the run's replay buffer"
    assert subject.windows is subject.episodes and subject.windows_source == "fresh episodes of the policy"
    one = with_buffer(subject, only=0)  # the buffer of a set holds the other tasks too
    assert one.windows is one.episodes


def test_saying_where_windows_come_from_runs_no_episode(make_subject):
    subject = make_subject()
    subject.make_env = None
    assert subject.windows_source == "fresh episodes of the policy"
    with pytest.raises(DataError, match="needs the real environment"):
        subject.windows  # noqa: B018


def test_starts_are_encodings_of_replayed_observations(subject):
    own = with_buffer(subject)
    start, context = own.starts(50, own.generator("x"))
    stored = own.replay.obs[:6].flatten(0, 1)  # five steps, and what they led to
    encoded, _ = own.encode(stored, torch.zeros(len(stored), dtype=torch.long))
    # float32 products of other batch sizes round differently
    assert torch.cdist(start.double(), encoded.double()).amin(1).max() < 1e-4
    assert not start.requires_grad and len(context.discount) == 50


def test_batch_size_is_that_of_the_actor_update(make_subject):
    assert make_subject().batch_size == 6
    assert make_subject("training.actor_batch_size=null").batch_size == 4  # the number of environments
