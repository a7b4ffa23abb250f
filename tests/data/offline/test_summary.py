"""Figures of a dataset against those of its episodes."""

import numpy as np
import pytest
from made_up import TASKS, make_episode

from flowmbpo.data.offline.summary import QUANTILES, summarise
from flowmbpo.data.offline.writer import DatasetWriter


def test_figures_are_those_of_the_episodes(make_dataset):
    lengths = (4, 9, 2)
    summaries = summarise(make_dataset(lengths))
    for task_id, (task, summary) in enumerate(zip(TASKS, summaries, strict=True)):
        episodes = [make_episode(task, length, 2 * i + task_id) for i, length in enumerate(lengths)]
        obs, action, reward, terminated = (np.concatenate(values) for values in zip(*episodes, strict=True))
        returns = [float(episode[2].sum(dtype=np.float64)) for episode in episodes]
        assert (summary.name, summary.episodes, summary.transitions) == (task.name, 3, 15)
        assert summary.lengths == (2, 9)
        assert summary.mean_reward == pytest.approx(reward.mean(dtype=np.float64))
        assert (summary.return_min, summary.return_max) == (min(returns), max(returns))
        assert summary.return_mean == pytest.approx(np.mean(returns))
        assert summary.return_quantiles[QUANTILES.index(0.5)] == sorted(returns)[1]
        assert summary.ranges.obs == (obs.min(), obs.max())
        assert summary.ranges.action == (action.min(), action.max())
        assert summary.ranges.reward == (reward.min(), reward.max())  # all positive: padding would give 0
        assert summary.ranges.obs_by_column[1] == (obs[:, 1].min(), obs[:, 1].max())
        assert summary.ranges.terminated == terminated.sum() == (3 if task_id else 0)


def test_sources_are_told_apart_and_a_task_without_episodes_is_empty(tmp_path):
    with DatasetWriter.create(tmp_path / "data", "pair", TASKS, {}) as writer:
        for number, reward in enumerate((1.0, 2.0, 6.0)):
            writer.add(0, np.zeros((3, 6)), np.zeros((2, 2)), [reward, 0], [0, 0], source=number % 2)
        first, second = summarise(writer.finish(), rows=False)
    assert first.sources == {0: 2, 1: 1} and first.source_returns == {0: 3.5, 1: 2.0}
    assert first.ranges is None
    assert (second.episodes, second.lengths, second.sources) == (0, (0, 0), {})
    assert np.isnan(second.return_mean) and np.isnan(second.mean_reward)
