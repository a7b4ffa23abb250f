"""Every window once per pass, from the right place, whatever memory, threads and interruptions there are."""

import threading
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from made_up import TASKS, Widths, fill, make_episode

from flowmbpo.data.dataset import sampler as sampler_module
from flowmbpo.data.dataset import windows as windows_module
from flowmbpo.data.dataset.sampler import WindowSampler
from flowmbpo.data.dataset.writer import DatasetWriter
from flowmbpo.errors import CheckpointError, ConfigError, DataError
from flowmbpo.spec import EnvSpec, TaskInfo


def spec_of(*tasks, name="pair"):
    return EnvSpec(tuple(TaskInfo(t.name, "toy", t.obs_dim, t.action_dim, 100, 1, 0.99) for t in tasks), name)


PAIR = spec_of(*TASKS)
MANY = (Widths("a", 3, 1), Widths("b", 5, 2), Widths("c", 2, 1))
LENGTHS = tuple(1 + 7 * k % 23 for k in range(60))


@pytest.fixture
def small_groups(monkeypatch):
    """Blocks of 8 rows, and memory counted in kilobytes instead of megabytes."""
    monkeypatch.setattr(windows_module, "BLOCK_ROWS", 8)
    monkeypatch.setattr(sampler_module, "MEGABYTE", 1024)


def window_keys(batch):
    """(task, episode, step) of every window: the first observation says them, see `make_episode`."""
    first = batch.obs[0, :, 0].double()
    episode = first.floor().long()
    step = ((first - episode) * 1000).round().long()
    return list(zip(batch.task.tolist(), episode.tolist(), step.tolist(), strict=True))


def same(one, other):
    return all(
        torch.equal(getattr(one, name), getattr(other, name))
        for name in ("obs", "action", "reward", "terminated", "valid", "task")
    )


def test_windows_are_those_of_the_episodes(make_dataset):
    """Against the episodes themselves: alignment, padding of widths, masks, termination, task ids."""
    lengths = (5, 2, 9)
    dataset = make_dataset(lengths)
    with WindowSampler(dataset, PAIR, horizon=3, batch_size=24, seed=0) as sampler:
        batch = sampler.next()
    assert batch.obs.shape == (4, 24, 24) and batch.action.shape == (3, 24, 6)
    for column, (task_id, number, step) in enumerate(window_keys(batch)):
        task, length = TASKS[task_id], lengths[number // 2]
        obs, action, reward, terminated = make_episode(task, length, number)
        steps = min(3, length - step)
        assert batch.valid[:, column].tolist() == [t < steps for t in range(3)]
        expected = np.concatenate([obs[step : step + steps + 1], np.repeat(obs[-1:], 3 - steps, 0)])
        assert np.array_equal(batch.obs[:, column, : task.obs_dim], expected)
        assert not batch.obs[:, column, task.obs_dim :].any() and not batch.action[:, column, task.action_dim :].any()
        assert np.array_equal(batch.action[:steps, column, : task.action_dim], action[step : step + steps])
        assert np.array_equal(batch.reward[:steps, column], reward[step : step + steps])
        assert batch.terminated[:steps, column].tolist() == terminated[step : step + steps].tolist()
        padding = [batch.action[steps:, column], batch.reward[steps:, column], batch.terminated[steps:, column]]
        assert not any(part.any() for part in padding)
    # 3 + 1 + 7 windows of each task
    assert sampler.starts == 22


@pytest.mark.usefixtures("small_groups")
@pytest.mark.parametrize("memory", [8, 12, 128])
@pytest.mark.parametrize("balance", ["tasks", "proportional"])
def test_every_window_comes_once_in_every_pass(make_dataset, memory, balance):
    dataset = make_dataset(LENGTHS, MANY)
    horizon = 4
    per_task = sum(max(length - horizon, 0) + 1 for length in LENGTHS)
    batch_size = 30
    with WindowSampler(
        dataset, spec_of(*MANY), horizon=horizon, batch_size=batch_size, seed=3, balance=balance, memory_mb=memory
    ) as sampler:
        assert sampler.starts == 3 * per_task
        groups = [len(task.groups(0)) for task in sampler._tasks]
        assert min(groups) == 1 if memory == 128 else min(groups) > 2
        keys = [key for _ in range(2 * 3 * per_task // batch_size + 1) for key in window_keys(sampler.next())]
        orders = []
        for task in range(3):
            own = [key for key in keys if key[0] == task]
            passes = [own[:per_task], own[per_task : 2 * per_task]]
            for windows in passes:
                assert len(windows) == len(set(windows)) == per_task
            orders += passes
        assert orders[0] != orders[1]


@settings(max_examples=12)
@given(
    lengths=st.lists(st.integers(1, 30), min_size=1, max_size=12),
    horizon=st.integers(1, 12),
    batch_size=st.integers(1, 17),
    seed=st.integers(0, 5),
)
def test_a_pass_holds_every_window_of_any_episodes(tmp_path_factory, lengths, horizon, batch_size, seed):
    path = tmp_path_factory.mktemp("any") / "data"
    with DatasetWriter.create(path, "", TASKS[:1], {}) as writer:
        fill(writer, TASKS[:1], lengths)
        dataset = writer.finish()
    expected = {(0, e, t) for e, length in enumerate(lengths) for t in range(max(length - horizon, 0) + 1)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(windows_module, "BLOCK_ROWS", 8)
        patch.setattr(sampler_module, "MEGABYTE", 1600)  # two blocks of up to 8 + 30 rows of 45 bytes
        with WindowSampler(
            dataset, spec_of(TASKS[0]), horizon=horizon, batch_size=batch_size, seed=seed, memory_mb=3
        ) as sampler:
            keys = [key for _ in range(-(-len(expected) // batch_size)) for key in window_keys(sampler.next())]
    assert set(keys[: len(expected)]) == expected


def test_balanced_batches_hold_tasks_equally_often(make_dataset):
    dataset = make_dataset((30, 2), MANY)
    with WindowSampler(dataset, spec_of(*MANY), horizon=2, batch_size=8, seed=1) as sampler:
        counts = np.array([torch.bincount(sampler.next().task, minlength=3).tolist() for _ in range(30)])
    assert (counts.max(1) - counts.min(1)).max() == 1
    assert counts.sum(0).tolist() == [80, 80, 80]


def test_proportional_batches_follow_the_amount_of_data(tmp_path):
    sizes = {0: 3, 1: 30, 2: 12}
    with DatasetWriter.create(tmp_path / "data", "", MANY, {}) as writer:
        for task, count in sizes.items():
            for number in range(count):
                writer.add(task, *make_episode(MANY[task], 10, number))
        dataset = writer.finish()
    with WindowSampler(dataset, spec_of(*MANY), horizon=10, batch_size=15, seed=1, balance="proportional") as sampler:
        counts = [torch.bincount(sampler.next().task, minlength=3) for _ in range(3)]
        for count in counts:  # 1, 10, 4 each
            assert (count - torch.tensor([1, 10, 4])).abs().max() <= 1
        assert sum(counts).tolist() == [3, 30, 12]


@pytest.mark.usefixtures("small_groups")
@pytest.mark.parametrize("balance", ["tasks", "proportional"])
def test_resuming_anywhere_goes_on_exactly(make_dataset, balance):
    """20 batches after each of several points, with other numbers of threads and of batches ahead."""
    dataset = make_dataset(LENGTHS, MANY)
    options = {"horizon": 4, "batch_size": 16, "seed": 5, "balance": balance, "memory_mb": 8}
    with WindowSampler(dataset, spec_of(*MANY), **options) as sampler:
        states, batches = [], []
        for _ in range(130):
            states.append(sampler.state_dict())
            batches.append(sampler.next())
    assert max(states[-1]["dealt"]) > sampler.starts / 3  # beyond a pass
    for point, threads, prefetch in ((0, 3, 7), (1, 1, 1), (37, 2, 16), (110, 4, 2)):
        with WindowSampler(dataset, spec_of(*MANY), **options, threads=threads, prefetch=prefetch) as resumed:
            for _ in range(point % 3):
                resumed.next()  # it may have been used
            resumed.load_state_dict(states[point])
            assert resumed.state_dict() == states[point]
            assert all(same(resumed.next(), batches[point + k]) for k in range(20))


@pytest.mark.usefixtures("small_groups")
def test_resuming_reads_only_the_group_it_stands_in(make_dataset, monkeypatch):
    dataset = make_dataset(LENGTHS, MANY[:1])
    options = {"horizon": 4, "batch_size": 4, "seed": 5, "memory_mb": 2}
    with WindowSampler(dataset, spec_of(MANY[0]), **options) as sampler:
        groups = len(sampler._tasks[0].groups(0))
        for _ in range(sampler.starts // 8):
            sampler.next()
        state = sampler.state_dict()
    assert groups > 6
    read = []
    original = type(dataset).read_rows
    monkeypatch.setattr(type(dataset), "read_rows", lambda *args: read.append(1) or original(*args))
    with WindowSampler(dataset, spec_of(MANY[0]), **options) as sampler:
        sampler.load_state_dict(state)
        sampler.next()
    assert len(read) <= 2  # one shard: one call per group


@pytest.mark.usefixtures("small_groups")
@pytest.mark.parametrize("prefetch", [1, 16])
def test_memory_stays_within_its_bound(make_dataset, prefetch):
    dataset = make_dataset(LENGTHS, MANY)
    memory = 8
    with WindowSampler(
        dataset, spec_of(*MANY), horizon=4, batch_size=6, seed=0, memory_mb=memory, prefetch=prefetch
    ) as sampler:
        most = 0
        for _ in range(200):
            sampler.next()
            held = 0
            for task in sampler._tasks:
                assert len(task.loaded) <= 2
                for group in (future.result() for future in task.loaded.values()):
                    arrays = (*vars(group.rows).values(), group.final, group.first)
                    held += sum(array.nbytes for array in arrays)
            most = max(most, held)
    assert 0.4 * memory * 1024 < most <= memory * 1024


@pytest.mark.usefixtures("small_groups")
def test_too_little_memory_is_said_with_what_is_needed(make_dataset):
    dataset = make_dataset(LENGTHS, MANY)
    with pytest.raises(ConfigError, match=r"data\.memory_mb 1 is too small for 3 tasks.*set it to (\d+)") as caught:
        WindowSampler(dataset, spec_of(*MANY), horizon=4, batch_size=6, seed=0, memory_mb=1)
    needed = int(str(caught.value).split("set it to ")[1].split()[0])
    WindowSampler(dataset, spec_of(*MANY), horizon=4, batch_size=6, seed=0, memory_mb=needed).close()


def test_one_task_alone_keeps_its_id_and_the_sets_widths(make_dataset):
    dataset = make_dataset((5, 6))
    with WindowSampler(dataset, PAIR, horizon=1, batch_size=4, seed=0, only=0) as sampler:
        batch = sampler.next()
    assert batch.task.tolist() == [0] * 4 and batch.obs.shape == (2, 4, 24)
    assert not batch.obs[..., 6:].any()


def test_tasks_are_matched_by_name_and_take_spec_ids(make_dataset):
    dataset = make_dataset((5, 6))
    turned = spec_of(Widths("walker-stand+mass=2", 24, 6), TASKS[0])
    with WindowSampler(dataset, turned, horizon=1, batch_size=8, seed=0) as sampler:
        batch = sampler.next()
    # The dataset's ids are the other way round: walker's episodes have the odd numbers.
    assert {(task, number % 2) for task, number, _ in window_keys(batch)} == {(0, 1), (1, 0)}


def test_tasks_left_out_are_told(make_dataset, caplog):
    dataset = make_dataset((5,))
    with caplog.at_level("INFO"):
        WindowSampler(dataset, spec_of(TASKS[0]), horizon=1, batch_size=2, seed=0).close()
    assert "left out, not in pair: walker-stand" in caplog.text


def test_missing_tasks_and_other_widths_are_refused(make_dataset):
    dataset = make_dataset((5,))
    options = {"horizon": 1, "batch_size": 2, "seed": 0}
    with pytest.raises(DataError, match=r"no episodes of cheetah-run\. It holds: reacher-easy, walker-stand"):
        WindowSampler(dataset, spec_of(*TASKS, Widths("cheetah-run", 17, 6)), **options)
    with pytest.raises(DataError, match="reacher-easy has obs_dim 6 and action_dim 2, here it has 7 and 2"):
        WindowSampler(dataset, spec_of(Widths("reacher-easy", 7, 2)), **options)
    with pytest.raises(DataError, match="no task id 2"):
        WindowSampler(dataset, PAIR, **options, only=2)


def test_positions_of_another_dataset_or_options_are_refused(make_dataset):
    options = {"horizon": 2, "batch_size": 2, "seed": 0}
    with WindowSampler(make_dataset((5,)), PAIR, **options) as sampler:
        state = sampler.state_dict()
        for change, error in (
            ({"horizon": 3}, CheckpointError),
            ({"dealt": [1]}, CheckpointError),
            ({"dealt": [-1, 0]}, CheckpointError),
            ({"fingerprint": "0" * 64}, DataError),
        ):
            with pytest.raises(error):
                sampler.load_state_dict(state | change)
        assert sampler.state_dict() == state


def test_damage_met_while_reading_is_raised_by_next(make_dataset):
    dataset = make_dataset(LENGTHS)
    path = dataset.shard_paths(0)[0]
    sampler = WindowSampler(dataset, PAIR, horizon=2, batch_size=2, seed=0)
    data = bytearray(path.read_bytes())
    middle = data.index(b"") + len(data) // 2
    data[middle : middle + 2000] = bytes(2000)
    path.write_bytes(data)
    for _ in range(2):  # and again, rather than wrong data or a wait for ever
        with pytest.raises(DataError, match="damaged"):
            sampler.next()
    sampler.close()


def test_closing_ends_all_threads(make_dataset):
    before = threading.active_count()
    sampler = WindowSampler(make_dataset(LENGTHS), PAIR, horizon=2, batch_size=2, seed=0, threads=3)
    for _ in range(5):
        sampler.next()
    assert threading.active_count() > before
    sampler.close()
    assert threading.active_count() == before


def test_seeds_make_different_orders_and_the_same_seed_the_same(make_dataset):
    dataset = make_dataset(LENGTHS)
    orders = []
    for seed in (0, 0, 1):
        with WindowSampler(dataset, PAIR, horizon=2, batch_size=64, seed=seed) as sampler:
            orders.append(window_keys(sampler.next()))
    assert orders[0] == orders[1] != orders[2]
    assert max(Counter(orders[0]).values()) == 1
