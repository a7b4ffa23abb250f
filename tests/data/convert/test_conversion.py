"""A conversion that is interrupted, repeated or pointed elsewhere."""

from __future__ import annotations

import hashlib
import shutil

import pytest
import torch

from flowmbpo.data.convert import conversion, source, tdmpc2
from flowmbpo.data.convert.conversion import convert
from flowmbpo.data.convert.detection import open_source
from flowmbpo.data.dataset import writer
from flowmbpo.data.dataset.reader import Dataset
from flowmbpo.data.dataset.writer import DatasetWriter
from flowmbpo.errors import DataError, StorageError


class _Killed(BaseException):
    pass


@pytest.fixture
def many_checkpoints(monkeypatch):
    """Chunks of two episodes, a checkpoint after each; every episode is a shard."""
    monkeypatch.setattr(source, "CHUNK_BYTES", 2 * 501 * 31 * 4)
    monkeypatch.setattr(writer, "SHARD_BYTES", 1)
    monkeypatch.setattr(conversion, "CHECKPOINT_BYTES", 1)


ALL_POINTS = [(calls, limit) for calls in range(7) for limit in (None, 2)]
POINTS = [(0, None), (3, None), (6, None), (2, 2)]


@pytest.mark.parametrize(
    ("calls", "limit"),
    [*POINTS, *(pytest.param(*point, marks=pytest.mark.slow) for point in ALL_POINTS if point not in POINTS)],
)
def test_an_interrupted_conversion_loses_and_repeats_no_episode(
    tmp_path, chunk, folder_of, assert_holds_exactly, monkeypatch, many_checkpoints, calls, limit
):
    """Killed before each of its writes in turn."""
    chunks = [chunk([0, 4, 0, 7, 0], seed=1), chunk([12, 0, 4], seed=2)]
    folder = folder_of(*chunks)
    whole = convert(open_source(folder), tmp_path / "whole", limit=limit)
    real, made = DatasetWriter.add_many, []

    def killing(self, *arguments, **options):
        if len(made) == calls:
            raise _Killed
        made.append(None)
        real(self, *arguments, **options)

    with monkeypatch.context() as patched:
        patched.setattr(DatasetWriter, "add_many", killing)
        try:
            convert(open_source(folder), tmp_path / "data", limit=limit)
        except _Killed:
            with pytest.raises(DataError, match="unfinished"):
                Dataset.open(tmp_path / "data")
            patched.setattr(DatasetWriter, "add_many", real)
            dataset = convert(open_source(folder), tmp_path / "data", limit=limit)
        else:
            assert limit == 2  # which takes fewer writes
            dataset = Dataset.open(tmp_path / "data")
    assert dataset.fingerprint == whole.fingerprint
    if limit is None:
        assert_holds_exactly(dataset, chunks)


def test_a_finished_dataset_is_not_written_to(tmp_path, chunk, folder_of):
    folder = folder_of(chunk([0]))
    convert(open_source(folder), tmp_path / "data")
    with pytest.raises(DataError, match=r"holds a finished dataset. Name another folder"):
        convert(open_source(folder), tmp_path / "data")


def _interrupt_in_second_file(folder, dest, monkeypatch):
    real = tdmpc2.TDMPC2Source.open

    def killing(self, number):
        if number == 1:
            raise _Killed
        return real(self, number)

    with monkeypatch.context() as patched:
        patched.setattr(tdmpc2.TDMPC2Source, "open", killing)
        with pytest.raises(_Killed):
            convert(open_source(folder), dest)


def test_another_source_than_the_started_one_is_refused(tmp_path, chunk, folder_of, monkeypatch):
    folder = folder_of(chunk([0]), chunk([1]))
    _interrupt_in_second_file(folder, tmp_path / "data", monkeypatch)
    other = folder_of(chunk([0], seed=5), chunk([1]), name="other")
    with pytest.raises(DataError, match=r"chunk_0\.pt: is not the file that the conversion in .* was begun with"):
        convert(open_source(other), tmp_path / "data")
    longer = folder_of(chunk([0]), chunk([1]), chunk([2]), name="longer")
    with pytest.raises(DataError, match=r"another command began \(files differ\)"):
        convert(open_source(longer), tmp_path / "data")
    with pytest.raises(DataError, match=r"another command began \(limit_episodes_per_task differ\)"):
        convert(open_source(folder), tmp_path / "data", limit=1)
    assert convert(open_source(folder), tmp_path / "data").episodes == 2


def test_a_conversion_killed_at_its_beginning_is_bound_to_its_source(tmp_path, chunk, folder_of, monkeypatch):
    """The first manifest says what was asked for, so that no other call goes on with it."""
    folder, other = folder_of(chunk([0])), folder_of(chunk([0], set_name="mt80"), name="other")
    create = DatasetWriter.create

    def killing(*arguments):
        create(*arguments).close()
        raise _Killed

    with monkeypatch.context() as patched:
        patched.setattr(DatasetWriter, "create", killing)
        with pytest.raises(_Killed):
            convert(open_source(folder), tmp_path / "data")
    with pytest.raises(DataError, match=r"another command began \(limit_episodes_per_task differ\)"):
        convert(open_source(folder), tmp_path / "data", limit=1)
    with pytest.raises(DataError, match=r"another command began \(tasks differ\)"):
        convert(open_source(other), tmp_path / "data")
    assert convert(open_source(folder), tmp_path / "data").episodes == 1


def test_a_chunk_that_is_there_twice_is_refused(tmp_path, chunk, folder_of):
    folder = folder_of(chunk([0, 1]))
    shutil.copy(folder / "chunk_0.pt", folder / "chunk_1.pt")
    with pytest.raises(DataError, match=r"chunk_1\.pt: is a copy of chunk_0\.pt: its episodes would be there twice"):
        convert(open_source(folder), tmp_path / "data")


def test_a_source_that_moved_meanwhile_is_still_the_same(tmp_path, chunk, folder_of, monkeypatch):
    folder = folder_of(chunk([0]), chunk([1]))
    _interrupt_in_second_file(folder, tmp_path / "data", monkeypatch)
    moved = folder.rename(tmp_path / "moved")
    assert convert(open_source(moved), tmp_path / "data").episodes == 2


def test_a_damaged_chunk_stops_the_conversion_until_it_is_mended(tmp_path, chunk, folder_of, assert_holds_exactly):
    chunks = [chunk([0, 1], seed=1), chunk([2], seed=2)]
    folder = folder_of(*chunks)
    data = (folder / "chunk_1.pt").read_bytes()
    damaged = bytearray(data)
    damaged[len(data) // 2] ^= 16
    (folder / "chunk_1.pt").write_bytes(damaged)
    with pytest.raises(DataError, match=r"chunk_1\.pt: cannot be read: the checksum"):
        convert(open_source(folder), tmp_path / "data")
    (folder / "chunk_1.pt").write_bytes(data)
    assert_holds_exactly(convert(open_source(folder), tmp_path / "data"), chunks)


def test_the_source_is_untouched(tmp_path, chunk, folder_of):
    folder = folder_of(chunk([0, 1]), chunk([2]))
    before = {
        path.name: (hashlib.sha256(path.read_bytes()).digest(), path.stat().st_mtime_ns) for path in folder.iterdir()
    }
    convert(open_source(folder), tmp_path / "data")
    after = {
        path.name: (hashlib.sha256(path.read_bytes()).digest(), path.stat().st_mtime_ns) for path in folder.iterdir()
    }
    assert after == before


def test_a_target_around_or_at_the_source_is_refused(tmp_path, chunk, folder_of):
    folder = folder_of(chunk([0]))
    for dest in (folder, tmp_path):
        with pytest.raises(DataError, match="holds the source, which is never written to"):
            convert(open_source(folder), dest)


def test_a_full_disk_is_an_error_and_the_conversion_goes_on(
    tmp_path, chunk, folder_of, assert_holds_exactly, monkeypatch
):
    chunks = [chunk([0, 1]), chunk([2])]
    folder = folder_of(*chunks)
    real, made = DatasetWriter.add_many, []

    def full(self, *arguments, **options):
        made.append(None)
        if len(made) == 2:
            raise StorageError("rows.bin: cannot be written: No space left on device.")
        real(self, *arguments, **options)

    with monkeypatch.context() as patched:
        patched.setattr(DatasetWriter, "add_many", full)
        with pytest.raises(StorageError, match=r"No space left on device.*same command goes on"):
            convert(open_source(folder), tmp_path / "data")
    assert_holds_exactly(convert(open_source(folder), tmp_path / "data"), chunks)


def test_progress_is_reported_to_the_end_of_every_file(tmp_path, chunk, folder_of):
    seen = []
    folder = folder_of(chunk([0, 1]), chunk([2]))
    convert(open_source(folder), tmp_path / "data", report=lambda *way: seen.append(way))
    assert [(path.name, number, files, part) for path, number, files, part in seen] == [
        ("chunk_0.pt", 0, 2, 1.0),
        ("chunk_1.pt", 1, 2, 1.0),
    ]


def test_a_folder_too_high_or_low_says_the_right_one(tmp_path, chunk, folder_of):
    folder = folder_of(chunk([0]), name="mt30")
    (folder / "notes").mkdir()
    with pytest.raises(DataError, match=rf"Did you mean {folder}\?"):
        open_source(tmp_path)
    with pytest.raises(DataError, match=rf"Did you mean {folder}\?"):
        open_source(folder / "notes")
    with pytest.raises(DataError, match=rf"is one file of a set. Did you mean {folder}\?"):
        open_source(folder / "chunk_0.pt")
    with pytest.raises(DataError, match=rf"Did you mean {folder}\?"):
        open_source(tmp_path, "tdmpc2")


def test_what_is_no_source_is_refused(tmp_path, chunk, folder_of):
    with pytest.raises(DataError, match="does not exist"):
        open_source(tmp_path / "nothing")
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(DataError, match=r"holds neither chunk_\*\.pt nor other \.pt files"):
        open_source(empty)
    layers = {f"layer{number}": torch.zeros(2) for number in range(60)}
    torch.save({"model": layers}, tmp_path / "checkpoint.pt")
    with pytest.raises(DataError, match=r"no published set .*checkpoint import.*layer3 and 56 more\.$"):
        open_source(tmp_path / "checkpoint.pt")
    with pytest.raises(DataError, match=r"--task walker-run: the chunks in .* hold all tasks of a set"):
        open_source(folder_of(chunk([0]), name="mt30"), task="walker-run")
    dataset = convert(open_source(folder_of(chunk([0]))), tmp_path / "data")
    with pytest.raises(DataError, match="is a dataset of flowmbpo already"):
        open_source(dataset.path)
