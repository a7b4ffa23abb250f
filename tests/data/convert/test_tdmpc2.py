"""TD-MPC2's chunks become the episodes that they hold."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch
from tensordict import TensorDict

from flowmbpo.data.convert import source as source_module
from flowmbpo.data.convert.conversion import convert
from flowmbpo.data.convert.detection import open_source
from flowmbpo.data.dataset.reader import Dataset
from flowmbpo.errors import DataError


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_every_episode_is_stored_once_realigned_with_own_widths(
    tmp_path, chunk, folder_of, assert_holds_exactly, dtype
):
    chunks = [chunk([0, 4, 3, 7, 0], seed=1, dtype=dtype), chunk([12, 0, 4], seed=2, dtype=dtype)]
    dataset = convert(open_source(folder_of(*chunks)), tmp_path / "data")
    assert_holds_exactly(dataset, chunks)
    assert (dataset.set_name, len(dataset.tasks), dataset.episodes) == ("mt30", 30, 8)
    assert (dataset.tasks[7].name, dataset.tasks[7].obs_dim, dataset.tasks[7].action_dim) == ("pendulum-swingup", 3, 1)
    assert dataset.tasks[0].episodes == 3
    assert dataset.source["files"][1]["name"] == "chunk_1.pt"


def test_mt80_is_recognised_by_its_shapes(tmp_path, chunk, folder_of, assert_holds_exactly):
    chunks = [chunk([79, 3, 30], set_name="mt80")]
    dataset = convert(open_source(folder_of(*chunks)), tmp_path / "data")
    assert_holds_exactly(dataset, chunks, "mt80")
    assert dataset.set_name == "mt80"
    assert dataset.tasks[79].name == "mw-hand-insert"


@pytest.mark.parametrize("junk", [0.0, 1e30, float("inf"), float("nan")])
def test_index_0_is_left_out_whatever_it_holds(tmp_path, chunk, folder_of, assert_holds_exactly, junk):
    content = chunk([0, 7])
    content["action"][:, 0] = junk
    content["reward"][:, 0] = junk
    assert_holds_exactly(convert(open_source(folder_of(content)), tmp_path / "data"), [content])


def test_chunks_of_any_size_give_the_same_dataset(tmp_path, chunk, folder_of, monkeypatch):
    folder = folder_of(chunk([0, 4, 3, 7, 0, 12, 4], seed=1))
    whole = convert(open_source(folder), tmp_path / "whole")
    monkeypatch.setattr(source_module, "CHUNK_BYTES", 2 * 501 * 31 * 4)
    assert convert(open_source(folder), tmp_path / "parts").fingerprint == whole.fingerprint


@pytest.mark.parametrize("field, step", [("obs", 0), ("obs", 500), ("action", 1), ("reward", 1), ("reward", 500)])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nonfinite_numbers_are_named_with_chunk_row_and_step(tmp_path, chunk, folder_of, field, step, value):
    first, second = chunk([0, 4]), chunk([0, 0, 4, 3])
    second[field][2, step].view(-1)[0] = value
    with pytest.raises(DataError, match=rf"chunk_1\.pt, row 2, step {step}: {field}.* is {value}"):
        convert(open_source(folder_of(first, second)), tmp_path / "data")


@pytest.mark.parametrize("field, column, step", [("obs", 6, 0), ("obs", 23, 9), ("action", 2, 1)])
def test_padding_that_is_not_zero_is_refused_as_wrong_widths(tmp_path, chunk, folder_of, field, column, step):
    content = chunk([0, 4])
    content[field][1, step, column] = 0.5
    with pytest.raises(DataError, match=rf"row 1, step {step}: wrong widths: reacher-easy.*column {column} holds 0\.5"):
        convert(open_source(folder_of(content)), tmp_path / "data")


def test_padding_is_cut_off_unseen_on_request(tmp_path, chunk, folder_of, assert_holds_exactly):
    content = chunk([0, 4])
    content["action"][1, :, 2:] = 0.5
    dataset = convert(open_source(folder_of(content), drop_padding=True), tmp_path / "data")
    assert_holds_exactly(dataset, [content])
    assert dataset.source["drop_padding"] is True


@pytest.mark.parametrize("task", [-1, 30, 10_000])
def test_an_unknown_task_id_is_refused(tmp_path, chunk, folder_of, task):
    content = chunk([0, 4])
    content["task"][1] = task
    with pytest.raises(DataError, match=rf"chunk_0\.pt, row 1: its task id is unknown \({task}\); mt30 has the ids 0"):
        convert(open_source(folder_of(content)), tmp_path / "data")


def test_a_task_that_changes_within_an_episode_is_refused(tmp_path, chunk, folder_of):
    content = chunk([0, 4])
    content["task"][1, 300:] = 5
    with pytest.raises(DataError, match=r"row 1: its task changes within the episode \(4, 5\)"):
        convert(open_source(folder_of(content)), tmp_path / "data")


def test_chunks_of_both_sets_in_one_folder_are_refused(tmp_path, chunk, folder_of):
    folder = folder_of(chunk([0]), chunk([0], set_name="mt80"))
    with pytest.raises(DataError, match=r"chunk_1\.pt: is a chunk of mt80, but chunk_0\.pt beside it is one of mt30"):
        convert(open_source(folder), tmp_path / "data")


def test_a_chunk_of_another_set_than_asked_for_is_refused(chunk, folder_of):
    with pytest.raises(DataError, match=r"is a chunk of mt30, not of mt80"):
        open_source(folder_of(chunk([0])), set_name="mt80")


def test_shapes_of_no_published_set_are_refused(folder_of):
    content = TensorDict(
        {"obs": torch.zeros(2, 501, 25), "action": torch.zeros(2, 501, 6)}
        | {name: torch.zeros(2, 501) for name in ("reward", "task")},
        batch_size=(2, 501),
    )
    with pytest.raises(DataError, match=r"wrong widths: obs \[2, 501, 25\].*mt80: obs \[E, 101, 39\]"):
        open_source(folder_of(content))


def test_a_chunk_without_episodes_is_refused(tmp_path, chunk, folder_of):
    """By itself it would end as a complete dataset of nothing, beside others as a set with a hole."""
    empty = chunk([0, 4])[:0].clone()
    message = r"chunk_{}\.pt: holds no episodes \(obs is \[0, 501, 24\]\)"
    with pytest.raises(DataError, match=message.format(0)):
        convert(open_source(folder_of(empty)), tmp_path / "data")
    assert not (tmp_path / "data").exists()
    with pytest.raises(DataError, match=message.format(1)):
        convert(open_source(folder_of(chunk([0]), empty, name="both")), tmp_path / "data")
    with pytest.raises(DataError, match="unfinished"):
        Dataset.open(tmp_path / "data")


def test_missing_chunks_are_said(chunk, folder_of, caplog):
    folder = folder_of(chunk([0]), chunk([1]), chunk([2]))
    (folder / "chunk_1.pt").unlink()
    with caplog.at_level(logging.WARNING, logger="flowmbpo"):
        source = open_source(folder)
    assert [path.name for path in source.files] == ["chunk_0.pt", "chunk_2.pt"]
    assert "2 of the 4 published chunks of mt30 are here; missing: chunk_1.pt, chunk_3.pt" in caplog.text


def test_chunks_are_taken_in_the_order_of_their_numbers(tmp_path, chunk, folder_of):
    folder = folder_of(*(chunk([0], set_name="mt80") for _ in range(11)))
    assert [path.name for path in open_source(folder).files] == [f"chunk_{number}.pt" for number in range(11)]


@pytest.mark.parametrize("limit", [1, 2, 3, 5, 100])
def test_a_limit_keeps_episodes_spread_over_all(tmp_path, chunk, folder_of, stored, limit):
    tasks = [[0, 4, 0, 0, 4, 0], [0, 0, 4, 0, 7, 0]]
    dataset = convert(open_source(folder_of(*map(chunk, tasks))), tmp_path / "data", limit=limit)
    order = np.concatenate(tasks)
    for task in (0, 4, 7):
        places = np.flatnonzero(order == task)
        kept = [number for number, episode in stored(dataset).items() if episode[0] == task]
        assert len(kept) == min(limit, len(places))
        ranks = np.flatnonzero(np.isin(places, kept))
        gaps = np.diff(np.concatenate(([-1], ranks)))
        assert gaps.max() <= -(-len(places) // limit)  # never two kept ones further apart than an even spread
