"""Where two recordings differ, and what is saved when."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from flowmbpo.config.task import TaskConfig
from flowmbpo.envs.inspection.recording import Recording, _mid_episode, difference, random_actions, record
from flowmbpo.envs.make import make_env


def recording(steps=4, copies=2, width=3):
    flags = torch.zeros(steps, copies, dtype=torch.bool)
    return Recording(
        first=torch.zeros(copies, width),
        obs=torch.arange(steps * copies * width, dtype=torch.float32).reshape(steps, copies, width),
        final_obs=torch.zeros(steps, copies, width),
        reward=torch.zeros(steps, copies),
        success=torch.full((steps, copies), torch.nan),
        terminated=flags,
        truncated=flags,
        broken=flags,
    )


def changed(name, place, value):
    whole = recording()
    tensor = getattr(whole, name).clone()
    tensor[place] = value
    return replace(whole, **{name: tensor})


def test_equal_recordings_do_not_differ_even_where_success_is_nan():
    assert difference(recording(), recording()) is None


@pytest.mark.parametrize(
    ("name", "place", "value", "words"),
    [
        ("first", (1, 2), 0.5, "the first observation of copy 1: differs by up to 0.5"),
        ("obs", (2, 1, 0), 19.0, "obs of copy 1 in step 3: differs by up to 4"),
        ("reward", (1, 0), -0.0, "reward of copy 0 in step 2: differs by up to 0"),
        ("truncated", (3, 1), True, "truncated of copy 1 in step 4: True in place of False"),
    ],
)
def test_one_bit_is_found_and_named(name, place, value, words):
    assert difference(recording(), changed(name, place, value)) == words


def test_the_earliest_difference_is_the_one_that_is_told():
    late, early = changed("obs", (3, 0, 0), -1.0), changed("reward", (1, 1), 2.0)
    both = replace(late, reward=early.reward)
    assert difference(recording(), both) == "reward of copy 1 in step 2: differs by up to 2"


def test_parts_and_copies_keep_what_was_seen_before():
    whole = recording()
    part = whole.part(2, 4)
    assert part.steps == 2
    assert part.first.equal(whole.obs[1])
    assert whole.part(0, 3).first.equal(whole.first)
    alone = whole.of(1)
    assert alone.obs.shape == (4, 1, 3)
    assert alone.obs.equal(whole.obs[:, 1:])


def test_a_recording_is_what_the_environment_answered():
    env = make_env(TaskConfig(name="toy-lqr"), 2)
    table = random_actions(env, 3, seed=4)
    assert table.shape == (3, 2, 2) and table.abs().max() <= 1
    assert table.equal(random_actions(env, 3, seed=4)) and not table.equal(random_actions(env, 3, seed=5))
    found = record(env, env.reset(1), table)
    env.reset(1)
    for place, action in enumerate(table):
        step = env.step(action)
        assert found.obs[place].equal(step.obs) and found.reward[place].equal(step.reward)


@pytest.mark.parametrize(
    ("steps", "length", "place"),
    [(500, 500, 300), (500, 100, 299), (500, 1000, 300), (60, 25, 24), (2, 100, 1)],
)
def test_the_state_is_saved_late_in_an_episode(steps, length, place):
    assert _mid_episode(steps, length) == place
