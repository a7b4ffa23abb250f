"""Episodes that the simulator breaks: thrown away, counted, dumped, and too many stop the run."""

import dataclasses
import logging

import numpy as np
import pytest
import torch

from flowmbpo.config.task import TaskConfig
from flowmbpo.envs.episodes import Fault
from flowmbpo.envs.make import make_env
from flowmbpo.errors import EnvironmentFailure


@pytest.fixture
def broken_at(make_trainer, monkeypatch):
    """A trainer on four copies, the second of which breaks at each of the given calls of `step`."""

    def make(*calls, **changes):
        env = make_env(TaskConfig(name="toy-pendulum-swingup", num_envs=4))
        step = env.step
        counter = iter(range(10**6))

        def sabotaged(action):
            result, call = step(action), next(counter)
            if call not in calls:
                return result
            fault = Fault(1, "toy", 0, 0, call + 1, "a result is absurd", "state", np.ones((1, 1), np.float32))
            reward = result.reward.clone()
            reward[1] = 0.0
            return dataclasses.replace(result, reward=reward, faults=(fault,))

        monkeypatch.setattr(env, "step", sabotaged)
        return make_trainer(env=env, **changes)

    return make


def test_nothing_of_a_broken_episode_is_trained_on_and_it_is_counted(broken_at, caplog):
    trainer = broken_at(4, random_episodes=0, horizon=6)
    dumps = {}
    trainer.collector.dump = dumps.__setitem__
    with caplog.at_level(logging.WARNING, "flowmbpo"):
        metrics = trainer.run_epoch()
    assert metrics["faults/count"] == 1
    assert trainer.replay.num_starts.tolist() == [6, 1, 6, 6]  # of the second copy, the step after the break
    assert "environment 1 broke in step 5 of episode 0" in caplog.text
    record = dumps["epoch000000-episode-1"]
    assert record["reason"] == "a result is absurd"
    assert torch.equal(record["actions"], torch.ones(1, 1))
    assert trainer.running_return[1] == trainer.replay.reward[0, 1]
    assert trainer.state_dict()["faults"] == 1


def test_the_zero_that_stands_for_a_broken_step_is_no_reward(broken_at):
    trainer = broken_at(4, random_episodes=0, horizon=6)
    seen = []
    trainer.agent.reward_normalizer.update = lambda reward: seen.append(reward.clone())
    trainer.run_epoch()
    assert [len(reward) for reward in seen] == [4, 4, 4, 4, 3, 4]
    assert (torch.cat(seen) != 0).all()


def test_an_episode_that_could_not_start_takes_nothing_from_the_one_before_it(make_trainer, monkeypatch):
    trainer = make_trainer(random_episodes=0, horizon=101)
    step, seen = trainer.env.step, []

    def sabotaged(action):
        result = step(action)
        unstarted = Fault(1, "toy", 0, 1, 0, "no room", "state", np.zeros((0, 1), np.float32))
        return dataclasses.replace(result, faults=(unstarted,) if result.done[1] else ())

    monkeypatch.setattr(trainer.env, "step", sabotaged)
    monkeypatch.setattr(trainer.agent.reward_normalizer, "update", seen.append)
    trainer.run_epoch()
    assert trainer.faults == 1
    assert trainer.replay.num_starts.tolist() == [101] * 4
    assert all(len(reward) == 4 for reward in seen)
    assert len(trainer.recent_returns) == 4


def test_more_broken_episodes_than_allowed_stop_the_run(broken_at):
    trainer = broken_at(0, 1, 2, random_episodes=0, horizon=6, max_faults=2)
    with pytest.raises(EnvironmentFailure, match=r"3 episodes broke in the simulator; training.max_faults allows 2"):
        trainer.run_epoch()


def test_a_random_episode_that_breaks_is_done_again(broken_at):
    trainer = broken_at(10, random_episodes=1)
    trainer.start()
    assert int(trainer.replay.num_starts[1]) == 89  # an episode of 100 steps, 11 of them thrown away
