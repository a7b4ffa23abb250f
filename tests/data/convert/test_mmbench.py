"""MMBench's demonstrations: flat rows become episodes, widths become the task's own."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from flowmbpo.data.convert import source
from flowmbpo.data.convert.conversion import convert
from flowmbpo.data.convert.detection import open_source
from flowmbpo.errors import DataError


@pytest.fixture
def walker(demos):
    return demos([5, 5, 3, 7], obs_dim=24, action_dim=6, ended=(2,))


def save(folder, **contents):
    folder.mkdir(exist_ok=True)
    for name, content in contents.items():
        torch.save(content, folder / f"{name.replace('_', '-')}.pt")
    return folder


def check(episode, content, start, length, obs_dim, action_dim):
    _, obs, action, reward, terminated = episode
    rows = slice(start, start + length + 1)
    np.testing.assert_array_equal(obs, content["obs"][rows, :obs_dim].numpy())
    np.testing.assert_array_equal(action, content["action"][rows][1:, :action_dim].numpy())
    np.testing.assert_array_equal(reward, content["reward"][rows][1:].numpy())
    np.testing.assert_array_equal(terminated, content["terminated"][rows][1:].numpy())


@pytest.mark.parametrize("chunk_bytes", [1, 32 << 20])
def test_demos_of_any_length_are_stored_with_their_endings(tmp_path, walker, stored, monkeypatch, chunk_bytes):
    monkeypatch.setattr(source, "CHUNK_BYTES", chunk_bytes)
    folder = save(tmp_path / "mmbench", walker_walk=walker)
    dataset = convert(open_source(folder / "walker-walk.pt"), tmp_path / "data")
    episodes = stored(dataset)
    assert (dataset.set_name, dataset.tasks[0].name, dataset.obs_dim, dataset.action_dim) == (
        *("walker-walk", "walker-walk"),
        *(24, 6),
    )
    assert sorted(episodes) == [0, 1, 2, 3]
    for number, (start, length) in enumerate(((0, 5), (6, 5), (12, 3), (16, 7))):
        check(episodes[number], walker, start, length, 24, 6)
    assert [bool(episodes[number][4].any()) for number in range(4)] == [False, False, True, False]


def test_a_folder_gives_a_set_in_its_order(tmp_path, demos, stored):
    widths = {"walker-stand": (24, 6), "reacher-easy": (6, 2), "cheetah-run": (17, 6), "cup-spin": (8, 2)}
    contents = {
        name: demos([4, 4], obs_dim=obs, action_dim=action, seed=seed)
        for seed, (name, (obs, action)) in enumerate(widths.items())
    }
    folder = save(tmp_path / "mmbench", **contents)
    dataset = convert(open_source(folder, set_name="mini3"), tmp_path / "data")
    assert [task.name for task in dataset.tasks] == ["reacher-easy", "walker-stand", "cheetah-run"]
    episodes = stored(dataset)
    assert [episodes[number][0] for number in range(6)] == [0, 0, 1, 1, 2, 2]
    check(episodes[3], contents["walker-stand"], 5, 4, 24, 6)
    whole = convert(open_source(folder), tmp_path / "whole")
    assert (whole.set_name, whole.episodes) == ("mmbench", 8)
    (folder / "cheetah-run.pt").unlink()
    with pytest.raises(DataError, match=r"--set mini3 needs files that are not there: cheetah-run\.pt"):
        open_source(folder, set_name="mini3")


def test_an_unknown_task_has_the_widths_of_its_data(tmp_path, demos):
    folder = save(tmp_path / "mmbench", giraffe_run=demos([4], obs_dim=31, action_dim=9))
    dataset = convert(open_source(folder), tmp_path / "data")
    assert (dataset.tasks[0].name, dataset.obs_dim, dataset.action_dim) == ("giraffe-run", 31, 9)


def test_names_that_mmbench_spells_otherwise_are_this_projects_tasks(tmp_path, demos):
    folder = save(tmp_path / "mmbench", walker_run_backward=demos([4], obs_dim=24, action_dim=6))
    assert convert(open_source(folder), tmp_path / "data").tasks[0].name == "walker-run-backwards"


def test_a_limit_keeps_whole_demos(tmp_path, walker, stored):
    folder = save(tmp_path / "mmbench", walker_walk=walker)
    episodes = stored(convert(open_source(folder), tmp_path / "data", limit=2))
    assert sorted(episodes) == [1, 3]
    check(episodes[3], walker, 16, 7, 24, 6)


def test_wrong_widths_are_refused_with_the_row(tmp_path, walker):
    walker["obs"][13, 24] = 2.0
    folder = save(tmp_path / "mmbench", walker_walk=walker)
    with pytest.raises(DataError, match=r"walker-walk\.pt, row 13: wrong widths: walker-walk has 24 columns of obs"):
        convert(open_source(folder), tmp_path / "data")


def test_nan_beyond_the_first_row_is_refused_with_its_row(tmp_path, walker):
    walker["reward"][8] = torch.nan
    folder = save(tmp_path / "mmbench", walker_walk=walker)
    with pytest.raises(DataError, match=r"walker-walk\.pt, row 8: reward is nan"):
        convert(open_source(folder), tmp_path / "data")


@pytest.mark.parametrize("value", [torch.nan, 2.0])
def test_endings_are_flags_beyond_an_episodes_first_row(tmp_path, walker, stored, value):
    ended = walker["terminated"].float()
    ended[0] = torch.nan  # of the first row nothing is taken
    kept = convert(open_source(save(tmp_path / "first", walker_walk={**walker, "terminated": ended})), tmp_path / "a")
    assert [bool(stored(kept)[episode][4].any()) for episode in range(4)] == [False, False, True, False]
    ended[11] = value  # the last row of the second episode
    folder = save(tmp_path / "later", walker_walk={**walker, "terminated": ended})
    with pytest.raises(DataError, match=r"walker-walk\.pt, row 11: terminated is (nan|2), which is neither 0 nor 1"):
        convert(open_source(folder), tmp_path / "b")


@pytest.mark.parametrize("name", ["walker-walk", "unknown"])
@pytest.mark.parametrize(
    "key, shape", [("obs", (24,)), ("obs", (24, 2, 3)), ("action", (24,)), ("reward", (24, 2)), ("terminated", (3,))]
)
def test_columns_of_other_shapes_are_refused(tmp_path, walker, name, key, shape):
    folder = save(tmp_path / "mmbench", **{name: {**walker, key: torch.zeros(shape)}})
    with pytest.raises(DataError, match=rf"{key} has the shape \[.*for the 24 rows"):
        convert(open_source(folder), tmp_path / "data")


@pytest.mark.parametrize(
    "ids, what",
    [([0, 0, 1, 1, 0, 0], "episode 0 occurs in more than one place"), ([0, 0, 0, 1, 2, 2], "row 3: an episode of a")],
)
def test_rows_that_make_no_episodes_are_refused(tmp_path, demos, ids, what):
    content = demos([2, 2], obs_dim=24, action_dim=6)
    content["episode"] = torch.tensor(ids)
    folder = save(tmp_path / "mmbench", walker_walk=content)
    with pytest.raises(DataError, match=what):
        convert(open_source(folder), tmp_path / "data")
