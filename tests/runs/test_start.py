"""What a run starts from."""

import pytest

from flowmbpo.config.sections import DataConfig
from flowmbpo.envs.resolve import resolve
from flowmbpo.models.agent import seeded_agent
from flowmbpo.presets.load import load_experiment
from flowmbpo.runs.start import measure_rewards


class Rewards:
    """A dataset of 10 rewards of mean 2 and mean square 5."""

    def reward_moments(self, names, *, balanced):
        assert (names, balanced) == (["toy-pendulum-swingup"], True)
        return 10, 2.0, 5.0


def test_reward_statistics_of_a_dataset_are_its_mean_and_mean_square():
    config = load_experiment("quickstart").model_copy(update={"data": DataConfig(path="somewhere")})
    task = resolve(config.task)
    agent = seeded_agent(config, task.spec)
    measure_rewards(agent, Rewards(), config, task)
    moments = agent.reward_normalizer.moments
    assert (moments.count.item(), moments.mean.item()) == (10, 2.0)
    assert moments.rms.item() == pytest.approx(5.0**0.5)
