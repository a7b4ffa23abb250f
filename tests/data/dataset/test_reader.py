"""What a writer is given comes back as it was, where it belongs."""

import h5py
import numpy as np
import pytest
from made_up import TASKS, make_episode

from flowmbpo.data.dataset import writer as writer_module
from flowmbpo.data.dataset.verify import verify
from flowmbpo.data.dataset.writer import DatasetWriter
from flowmbpo.errors import DataError

LENGTHS = (3, 1, 7, 20)


def test_every_episode_comes_back_as_it_was(make_dataset):
    dataset = make_dataset(LENGTHS)
    for task_id, task in enumerate(TASKS):
        table = dataset.episode_table(task_id)
        block = dataset.read_episodes(task_id, range(len(LENGTHS)))
        assert table["length"].tolist() == list(LENGTHS) == block.length.tolist()
        assert table["id"].tolist() == [2 * i + task_id for i in range(len(LENGTHS))]
        for i, number in enumerate(table["id"]):
            obs, action, reward, terminated = make_episode(task, LENGTHS[i], number)
            start, end = block.start[i], block.start[i] + block.length[i]
            assert np.array_equal(block.obs[start : end + 1], obs)
            assert np.array_equal(block.action[start:end], action)
            assert np.array_equal(block.reward[start:end], reward)
            assert np.array_equal(block.terminated[start:end], terminated)
            assert table["return"][i] == reward.sum(dtype=np.float64)
    assert dataset.episodes == 8 and dataset.transitions == 2 * sum(LENGTHS)


def test_rows_stand_as_the_drawing_says(make_dataset, tmp_path):
    """An episode of 3 transitions that ends by itself, one of 1 that a time limit ends."""
    task = TASKS[0]
    with DatasetWriter.create(tmp_path / "drawn", "", [task], {}) as writer:
        obs = np.arange(24, dtype=np.float32).reshape(4, 6)
        writer.add(0, obs, [[1, 2], [3, 4], [5, 6]], [10, 20, 30], [0, 0, 1], episode_id=7)
        writer.add(0, obs[:2] + 100, [[7, 8]], [40], [0], episode_id=5, source=2)
        writer.finish()
    with h5py.File(tmp_path / "drawn" / "reacher-easy" / "00000.h5") as file:
        assert file["obs"][:, 0].tolist() == [0, 6, 12, 18, 100, 106]
        assert file["action"][:].tolist() == [[1, 2], [3, 4], [5, 6], [0, 0], [7, 8], [0, 0]]
        assert file["reward"][:].tolist() == [10, 20, 30, 0, 40, 0]
        assert file["terminated"][:].tolist() == [0, 0, 1, 0, 0, 0]
        found = {name: values[:].tolist() for name, values in file["episodes"].items()}
        assert found == {"start": [0, 4], "length": [3, 1], "id": [7, 5], "return": [60.0, 40.0], "source": [0, 2]}
        for name in ("obs", "action", "reward", "terminated"):
            assert file[name].fletcher32 and file[name].shuffle and file[name].compression == "lzf"


def test_adding_many_is_adding_each(tmp_path, monkeypatch):
    """Shards of 10 rows: calls of 9 and of 1 episode must cut them at the same places."""
    task = TASKS[0]
    monkeypatch.setattr(writer_module, "SHARD_BYTES", 10 * 4 * (6 + 2 + 2))
    episodes = [make_episode(task, 3, number) for number in range(9)]
    with DatasetWriter.create(tmp_path / "each", "", [task], {}) as writer:
        for episode in episodes:
            writer.add(0, *episode)
        each = writer.finish()
    with DatasetWriter.create(tmp_path / "many", "", [task], {}) as writer:
        stacked = [np.stack(values) for values in zip(*episodes, strict=True)]
        writer.add_many(0, *stacked)
        many = writer.finish()
    assert len(each.manifest.files) == 3  # 3 episodes of 4 rows fill one
    assert each.fingerprint == many.fingerprint
    assert verify(each.path) == verify(many.path) == []


def test_episodes_of_several_shards_are_one_table(tmp_path, monkeypatch):
    monkeypatch.setattr(writer_module, "SHARD_BYTES", 10 * 4 * 10)
    with DatasetWriter.create(tmp_path / "data", "", TASKS[:1], {}) as writer:
        for number in range(9):
            writer.add(0, *make_episode(TASKS[0], 2 + number % 3, number))
        dataset = writer.finish()
    table = dataset.episode_table(0)
    assert set(table["shard"]) == {0, 1, 2}
    for first in range(9):
        for end in range(first + 1, 10):
            block = dataset.read_episodes(0, range(first, end))
            assert block.id.tolist() == list(range(first, end))
            # obs = number + t / 1000 + column / 100000
            assert np.allclose(block.obs[block.start, 0], np.arange(first, end), atol=1e-5)
            assert np.allclose(block.obs[block.start + block.length, 0] % 1, block.length / 1000, atol=1e-5)
    with pytest.raises(IndexError):
        dataset.read_episodes(0, range(3, 10))


def test_own_widths_are_stored_and_the_sets_are_known(make_dataset):
    dataset = make_dataset((5,))
    assert (dataset.obs_dim, dataset.action_dim) == (24, 6)
    assert dataset.read_episodes(0, range(1)).obs.shape == (6, 6)
    assert dataset.read_episodes(1, range(1)).action.shape == (6, 6)
    assert dataset.task_id("walker-stand+mass=2") == 1
    with pytest.raises(DataError, match="reacher-easy, walker-stand"):
        dataset.task_id("walker-run")


def test_equal_data_have_equal_fingerprints_and_others_do_not(make_dataset):
    first, second, third = make_dataset((3, 4)), make_dataset((3, 4), name="b"), make_dataset((4, 3), name="c")
    assert first.fingerprint == second.fingerprint != third.fingerprint


def test_moments_of_rewards_count_tasks_or_transitions(tmp_path):
    with DatasetWriter.create(tmp_path / "data", "pair", TASKS, {}) as writer:
        writer.add(0, np.zeros((3, 6)), np.zeros((2, 2)), [1, 3], [0, 0])
        writer.add(1, np.zeros((2, 24)), np.zeros((1, 6)), [5], [0])
        dataset = writer.finish()
    names = ["reacher-easy", "walker-stand"]
    assert dataset.reward_moments(names, balanced=False) == pytest.approx((3, 9 / 3, 35 / 3))
    assert dataset.reward_moments(names, balanced=True) == pytest.approx((3, (2 + 5) / 2, (5 + 25) / 2))


BAD = {
    "unknown task": ({"task_id": 2}, r"unknown task id 2.*0 to 1"),
    "width of obs": ({"obs": np.zeros((4, 7))}, r"obs has the shape \(1, 4, 7\), expected \(1, 4, 6\)"),
    "one observation too few": ({"obs": np.zeros((3, 6))}, "obs has the shape"),
    "width of action": ({"action": np.zeros((3, 1))}, "action has the shape"),
    "NaN": ({"reward": [0, np.nan, 0]}, r"reacher-easy, episode 4, step 1: reward is nan"),
    "infinite": ({"obs": np.full((4, 6), np.inf)}, r"step 0: obs column 0 is inf"),
    "too large for float32": ({"action": np.full((3, 2), 1e300)}, "action column 0 is inf"),
    "ended too early": ({"terminated": [0, 1, 0]}, "terminated before its last transition"),
    "no transition": (
        {"obs": np.zeros((1, 6)), "action": np.zeros((0, 2)), "reward": [], "terminated": []},
        "at least 1",
    ),
    "an id twice": ({"episode_id": 0}, "episode id 0 comes twice"),
}


@pytest.mark.filterwarnings("ignore:overflow encountered in cast")
@pytest.mark.parametrize(("change", "message"), BAD.values(), ids=BAD)
def test_a_bad_episode_is_refused_and_nothing_of_it_stays(tmp_path, change, message):
    good = {"obs": np.zeros((4, 6)), "action": np.zeros((3, 2)), "reward": [0, 0, 0], "terminated": [0, 0, 0]}
    with DatasetWriter.create(tmp_path / "data", "pair", TASKS, {}) as writer:
        writer.add(task_id=0, **good, episode_id=0)
        with pytest.raises(DataError, match=message):
            writer.add(**({"task_id": 0, **good, "episode_id": 4} | change))
        writer.add(task_id=0, **good, episode_id=4)
        dataset = writer.finish()
    assert dataset.episode_table(0)["id"].tolist() == [0, 4]
    assert verify(dataset.path) == []
