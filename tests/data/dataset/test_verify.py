"""Damage is found; folders that are not datasets are told apart from those that are."""

import hashlib
import json
import shutil

import h5py
import numpy as np
import pytest
from made_up import TASKS, fill

from flowmbpo.data.dataset import writer as writer_module
from flowmbpo.data.dataset.format import EPISODE_FIELDS, MANIFEST, ROW_FIELDS, write_manifest
from flowmbpo.data.dataset.reader import Dataset
from flowmbpo.data.dataset.verify import verify
from flowmbpo.data.dataset.writer import DatasetWriter
from flowmbpo.errors import DataError


@pytest.fixture(scope="module")
def intact(tmp_path_factory):
    """Four files and their manifest."""
    path = tmp_path_factory.mktemp("intact") / "data"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(writer_module, "SHARD_BYTES", 6000)
        with DatasetWriter.create(path, "pair", TASKS, {"sources": ["made up"]}) as writer:
            fill(writer, TASKS, (30, 40, 50, 60))
            writer.finish()
    return path


@pytest.fixture
def dataset(intact, tmp_path):
    """A copy to damage."""
    return Dataset.open(shutil.copytree(intact, tmp_path / "data"))


def read_everything(path):
    dataset = Dataset.open(path)
    for task in range(len(dataset.tasks)):
        dataset.read_episodes(task, range(dataset.tasks[task].episodes))


def read_quietly(path):
    """Whether plain reading notices, without comparing hashes."""
    try:
        read_everything(path)
    except DataError:
        return True
    return False


@pytest.mark.parametrize("bits, cuts", [(20, 10), pytest.param(100, 50, marks=pytest.mark.slow)])
def test_every_flipped_bit_and_every_cut_is_found(dataset, bits, cuts):
    """Single bits and lengths, spread over all files and the manifest.

    Plain reading finds every cut (sizes are compared on opening), every change of the manifest, and every
    change in rows and in HDF5's own bookkeeping (see the next tests); unused room carries no checksum.
    """
    files = [*dataset.path.glob("*/*.h5"), dataset.path / MANIFEST]
    assert len(files) >= 5
    rng = np.random.default_rng(0)
    for number in range(bits):
        path = files[number % len(files)]
        whole = path.read_bytes()
        place, bit = int(rng.integers(len(whole))), int(rng.integers(8))
        broken = bytearray(whole)
        broken[place] ^= 1 << bit
        path.write_bytes(broken)
        assert verify(dataset.path), (path.name, place, bit)
        assert path.name != MANIFEST or read_quietly(dataset.path)
        path.write_bytes(whole)
    for number in range(cuts):
        path = files[number % len(files)]
        whole = path.read_bytes()
        path.write_bytes(whole[: int(rng.integers(len(whole)))])
        assert verify(dataset.path), path.name
        assert read_quietly(dataset.path), path.name
        path.write_bytes(whole)
    assert verify(dataset.path) == []


@pytest.mark.parametrize("bits", [20, pytest.param(60, marks=pytest.mark.slow)])
def test_plain_reading_notices_every_flipped_bit_in_rows(dataset, bits):
    path = dataset.shard_paths(1)[0]
    whole = path.read_bytes()
    with h5py.File(path) as file:
        chunks = [
            file[name].id.get_chunk_info(number)
            for name in ("obs", "action", "reward", "terminated", "episodes/length")
            for number in range(file[name].id.get_num_chunks())
        ]
    rng = np.random.default_rng(1)
    for number in range(bits):
        chunk = chunks[number % len(chunks)]
        broken = bytearray(whole)
        broken[chunk.byte_offset + int(rng.integers(chunk.size))] ^= 1 << int(rng.integers(8))
        path.write_bytes(broken)
        assert read_quietly(dataset.path), chunk


@pytest.mark.parametrize("places", [40, pytest.param(300, marks=pytest.mark.slow)])
def test_plain_reading_never_gives_other_numbers_than_were_written(dataset, places):
    """HDF5's bookkeeping carries checksums, too: a flipped bit anywhere is noticed, or changes nothing."""
    path = dataset.shard_paths(0)[0]
    whole = path.read_bytes()
    assert whole[8] >= 2  # version of the superblock: older ones come with headers without checksums
    with h5py.File(path) as file:
        chunks = [file[name].id.get_chunk_info(0) for name in (*ROW_FIELDS, *(f"episodes/{n}" for n in EPISODE_FIELDS))]
    inside = np.zeros(len(whole), bool)
    for chunk in chunks:
        inside[chunk.byte_offset : chunk.byte_offset + chunk.size] = True
    bookkeeping = np.flatnonzero(~inside)
    written = dataset.read_episodes(0, range(3))
    rng = np.random.default_rng(2)
    for place in rng.choice(bookkeeping, places, replace=False):
        broken = bytearray(whole)
        broken[place] ^= 1 << int(rng.integers(8))
        path.write_bytes(broken)
        try:
            found = dataset.read_episodes(0, range(3))
        except DataError:
            continue
        for name in (*ROW_FIELDS, "start", "length", "id"):
            np.testing.assert_array_equal(getattr(found, name), getattr(written, name), err_msg=f"byte {place}")


def test_a_file_whose_content_is_of_another_kind_is_damaged(dataset):
    """What stands where rows should be a group without columns, or text."""
    path = dataset.shard_paths(0)[0]

    def make_group(file):
        del file["obs"]
        file.create_group("obs")

    def make_text(file):
        del file["obs"]
        file["obs"] = ["a text"]

    whole = path.read_bytes()
    for change in (make_group, make_text):
        rewrite(dataset, change)
        assert verify(dataset.path), change
        with pytest.raises(DataError, match="damaged"):
            Dataset.open(dataset.path).read_episodes(0, range(3))
        path.write_bytes(whole)
        write_manifest(dataset.path, dataset.manifest)


@pytest.mark.parametrize(
    "field, name", [("tasks", "../other"), ("files", "../other/00000.h5"), ("files", "reacher-easy/../../00000.h5")]
)
def test_a_manifest_names_no_file_outside_its_folder(dataset, field, name):
    records = getattr(dataset.manifest, field)
    changed = (records[0].model_copy(update={"name": name}), *records[1:])
    write_manifest(dataset.path, dataset.manifest.model_copy(update={field: changed}))
    with pytest.raises(DataError, match=rf"damaged: {field}\.0\.name"):
        Dataset.open(dataset.path)


def rewrite(dataset, change):
    """Change a shard with `change(file)` and list it as if it had been written so."""
    path = dataset.shard_paths(0)[0]
    with h5py.File(path, "r+") as file:
        change(file)
    data = path.read_bytes()
    record = dataset.manifest.files[0].model_copy(
        update={"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    )
    write_manifest(dataset.path, dataset.manifest.model_copy(update={"files": (record, *dataset.manifest.files[1:])}))


def put(name, place, value):
    def change(file):
        file[name][place] = value

    return change


INCONSISTENT = {
    "gap between episodes": (put("episodes/start", 1, 32), "do not cover the rows"),
    "overlapping lengths": (put("episodes/length", 0, 29), "do not cover the rows"),
    "id of another file": (put("episodes/id", 0, 7), "episode id 7 is there twice"),
    "not a number": (put("obs", (3, 2), np.nan), "obs is nan in row 3, column 2"),
    "infinite reward": (put("reward", 4, np.inf), "reward is inf in row 4"),
    "reward of a final observation": (put("reward", 30, 1), "a final observation has a reward"),
    "action of a final observation": (put("action", (30, 0), 1), "a final observation has an action"),
    "terminated inside": (put("terminated", 5, 1), "terminated before its last transition"),
    "return": (put("episodes/return", 0, 99), "the return of episode 0 is not the sum"),
    "no obs": (lambda file: file.pop("obs"), "obs"),
}


@pytest.mark.parametrize(("change", "message"), INCONSISTENT.values(), ids=INCONSISTENT)
def test_files_that_contradict_themselves_are_found_though_their_hashes_fit(dataset, change, message):
    rewrite(dataset, change)
    findings = verify(dataset.path)
    assert any(message in finding.problem for finding in findings), findings


def test_counts_and_sums_of_the_manifest_are_checked(dataset):
    task = dataset.manifest.tasks[1]
    for change in ({"episodes": 5}, {"reward_sum": task.reward_sum + 1e-3}, {"reward_square_sum": 0.0}):
        tasks = (dataset.manifest.tasks[0], task.model_copy(update=change))
        write_manifest(dataset.path, dataset.manifest.model_copy(update={"tasks": tasks}))
        (finding,) = verify(dataset.path)
        assert finding.file == MANIFEST and "walker-stand" in finding.problem


def test_a_changed_file_is_one_finding_with_advice(dataset):
    first, second = dataset.shard_paths(0)[0], dataset.shard_paths(1)[0]
    first.write_bytes(first.read_bytes()[:1000])
    second.write_bytes(first.read_bytes().ljust(second.stat().st_size, b"x"))
    findings = verify(dataset.path)
    assert [finding.file for finding in findings] == ["reacher-easy/00000.h5", "walker-stand/00000.h5"]
    assert "has 1000 bytes instead of" in findings[0].problem and "has SHA-256" in findings[1].problem
    for finding in findings:
        assert str(dataset.path) not in str(finding) and "data verify" not in str(finding)
        assert str(finding).count(finding.file) == 1
        assert "from a copy" in finding.advice


def test_a_changed_manifest_is_one_finding_without_its_path(dataset):
    path = dataset.path / MANIFEST
    path.write_bytes(path.read_bytes().replace(b'"pair"', b'"pear"'))
    (finding,) = verify(dataset.path)
    assert finding.file == MANIFEST and str(dataset.path) not in finding.problem
    assert "backup" not in finding.problem and "from a copy" in finding.advice


def test_missing_and_unlisted_files_are_found(dataset):
    first = dataset.shard_paths(0)[0]
    first.rename(first.with_name("99999.h5"))
    problems = {finding.file: finding.problem for finding in verify(dataset.path)}
    assert problems["reacher-easy/00000.h5"] == "is missing"
    assert problems["reacher-easy/99999.h5"] == "is not in the manifest"
    with pytest.raises(DataError, match=r"00000\.h5 is missing"):
        Dataset.open(dataset.path)


def test_an_unfinished_dataset_is_not_opened_and_verified_as_such(tmp_path):
    with DatasetWriter.create(tmp_path / "data", "pair", TASKS, {}) as writer:
        fill(writer, TASKS, (3,))
        writer.checkpoint()
    with pytest.raises(DataError, match="unfinished"):
        Dataset.open(tmp_path / "data")
    assert [finding.problem for finding in verify(tmp_path / "data")] == ["the dataset is unfinished"]


@pytest.mark.parametrize("wrong", ["..", "reacher-easy", "reacher-easy/00000.h5", MANIFEST])
def test_a_folder_too_high_or_low_names_the_right_one(dataset, wrong):
    for function in (Dataset.open, verify):
        with pytest.raises(DataError, match=r"Did you mean .*data\?"):
            function(dataset.path / wrong)


def test_foreign_folders_and_versions_are_refused(tmp_path, dataset):
    with pytest.raises(DataError, match="does not exist"):
        Dataset.open(tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="Give the folder that"):
        Dataset.open(tmp_path / "empty")
    content = json.loads((dataset.path / MANIFEST).read_text())
    for change, message in (
        ({"format": "other"}, "its format is 'other'"),
        ({"version": 1}, "version 1 of the format, this program reads 2"),
        ({"obs_dim": 0}, "damaged: obs_dim"),
        ({"obs_dim": 99}, "does not have its SHA-256"),
    ):
        (tmp_path / "empty" / MANIFEST).write_text(json.dumps(content | change))
        with pytest.raises(DataError, match=message):
            Dataset.open(tmp_path / "empty")
    (tmp_path / "empty" / MANIFEST).write_bytes(b"\xff")
    with pytest.raises(DataError, match="not JSON"):
        Dataset.open(tmp_path / "empty")
