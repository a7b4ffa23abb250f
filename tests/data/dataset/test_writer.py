"""A writer that is killed, interrupted or refused by the disk leaves every episode exactly once."""

import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from made_up import TASKS, fill, make_episode

from flowmbpo.data.dataset import writer as writer_module
from flowmbpo.data.dataset.format import MANIFEST, read_manifest
from flowmbpo.data.dataset.reader import Dataset
from flowmbpo.data.dataset.verify import verify
from flowmbpo.data.dataset.writer import DatasetWriter
from flowmbpo.errors import DataError

EPISODES = 60
# Writes episode after episode that the dataset does not hold yet, with a checkpoint after every 7th. It kills itself in
# the middle of call number DIE of the function named WHERE.
SCRIPT = f"""
import os, signal, sys
import numpy as np
sys.path.insert(0, {str(Path(__file__).parent)!r})
from pathlib import Path
from made_up import TASKS, make_episode
from flowmbpo.data.dataset import writer
path, where, die = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
writer.SHARD_BYTES = 40 * 4 * 10
calls = 0

def dying(function):
    def call(*args, **kwargs):
        global calls
        calls += 1
        if calls == die:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*args, **kwargs)
    return call

for module, name in {{
    "add": [(writer, "lay_out")], "shard": [(writer, "encode_shard")], "replace": [(os, "replace")],
    "fsync": [(os, "fsync")], "never": [],
}}[where]:
    setattr(module, name, dying(getattr(module, name)))
made = writer.DatasetWriter.resume(path) if (path / writer.MANIFEST).exists() else None
made = made or writer.DatasetWriter.create(path, "pair", TASKS, {{}})
for number in range({EPISODES}):
    if not made.holds(np.array([number]))[0]:
        made.add(number % 2, *make_episode(TASKS[number % 2], 3 + number % 11, number), episode_id=number)
    if number % 7 == 6:
        made.checkpoint()
made.finish()
"""


def run(path, where="never", die=0):
    return subprocess.run([sys.executable, "-c", SCRIPT, path, where, str(die)], capture_output=True, text=True)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    path = tmp_path_factory.mktemp("whole") / "data"
    done = run(path)
    assert done.returncode == 0, done.stderr
    return Dataset.open(path)


@pytest.mark.parametrize(
    ("where", "points"),
    {"add": (2, 40), "shard": (5,), "replace": (1, 2, 9), "fsync": (11,)}.items(),
)
def test_a_killed_writer_goes_on_to_the_same_dataset(tmp_path, uninterrupted, where, points):
    """Killed at each point in turn, in the same folder, then let through."""
    path = tmp_path / "data"
    for point in points:
        done = run(path, where, point)
        assert done.returncode == -signal.SIGKILL, (point, done.stderr)
        if (path / MANIFEST).exists():
            with pytest.raises(DataError, match="unfinished"):
                Dataset.open(path)
    done = run(path)
    assert done.returncode == 0, done.stderr
    assert verify(path) == []
    dataset = Dataset.open(path)
    assert dataset.fingerprint == uninterrupted.fingerprint
    assert dataset.manifest == uninterrupted.manifest
    assert sum(len(uninterrupted.shard_paths(task)) for task in range(2)) > 6
    ids = np.concatenate([dataset.episode_table(task)["id"] for task in range(2)])
    assert sorted(ids.tolist()) == list(range(EPISODES))
    left = {place.name for place in path.iterdir()}
    assert left == {MANIFEST, "reacher-easy", "walker-stand"}


def test_what_came_after_the_last_checkpoint_is_gone_after_resuming(tmp_path):
    with DatasetWriter.create(tmp_path / "data", "pair", TASKS, {"kind": "test"}) as writer:
        fill(writer, TASKS, (3, 4))
        writer.checkpoint(seal=True)
        fill_more = make_episode(TASKS[0], 5, 10)
        writer.add(0, *fill_more, episode_id=10)
        writer.checkpoint()  # of full shards alone
    with DatasetWriter.resume(tmp_path / "data") as writer:
        assert writer.source == {"kind": "test"}
        assert [task.episodes for task in read_manifest(writer.path).tasks] == [2, 2]
        assert writer.holds(np.array([0, 3, 4, 10, 10**6])).tolist() == [True, True, False, False, False]
        with pytest.raises(DataError, match="episode id 3 comes twice"):
            writer.add(0, *fill_more, episode_id=3)
        writer.add(0, *fill_more, episode_id=10)
        writer.source["note"] = "second half"
        dataset = writer.finish()
    assert dataset.episodes == 5 and dataset.source == {"kind": "test", "note": "second half"}


def test_two_writers_of_a_folder_are_refused(tmp_path):
    with DatasetWriter.create(tmp_path / "data", "pair", TASKS, {}):
        with pytest.raises(DataError, match="another process is writing"):
            DatasetWriter.resume(tmp_path / "data")
        with pytest.raises(DataError, match="unfinished dataset, which can be resumed"):
            DatasetWriter.create(tmp_path / "data", "pair", TASKS, {})
    DatasetWriter.resume(tmp_path / "data").close()


@pytest.mark.parametrize("begin", ["create", "resume"])
def test_a_writer_that_waited_leaves_alone_what_another_finished_meanwhile(tmp_path, monkeypatch, begin):
    """Between looking at the folder and getting its lock, another writer comes, finishes and goes."""
    path = tmp_path / "data"
    create = DatasetWriter.create
    if begin == "resume":
        create(path, "pair", TASKS, {}).close()
    acquire = writer_module._acquire

    def overtaken(folder):
        monkeypatch.setattr(writer_module, "_acquire", acquire)
        other = create(folder, "pair", TASKS, {}) if begin == "create" else DatasetWriter.resume(folder)
        fill(other, TASKS, (3,))
        other.finish()
        return acquire(folder)

    monkeypatch.setattr(writer_module, "_acquire", overtaken)
    with pytest.raises(DataError, match="finished"):
        create(path, "pair", TASKS, {}) if begin == "create" else DatasetWriter.resume(path)
    assert verify(path) == []
    assert Dataset.open(path).episodes == 2


def test_a_finished_dataset_and_a_foreign_folder_are_left_alone(make_dataset, tmp_path):
    path = make_dataset((3,)).path
    before = (path / MANIFEST).read_bytes()
    for attempt in (DatasetWriter.resume, lambda p: DatasetWriter.create(p, "pair", TASKS, {})):
        with pytest.raises(DataError, match="finished"):
            attempt(path)
    assert (path / MANIFEST).read_bytes() == before
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("precious")
    with pytest.raises(DataError, match="not empty"):
        DatasetWriter.create(tmp_path / "mine", "pair", TASKS, {})


@pytest.mark.parametrize("name", ["", "../other", "a/b", ".hidden"])
def test_a_task_name_that_is_no_folder_is_refused(tmp_path, name):
    task = type(TASKS[0])(name, 3, 1)
    with pytest.raises(DataError, match="names a folder"):
        DatasetWriter.create(tmp_path / "data", "", [task], {})
    assert not (tmp_path / "data").exists()


def test_a_damaged_shard_is_told_when_resuming(tmp_path):
    with DatasetWriter.create(tmp_path / "data", "pair", TASKS, {}) as writer:
        fill(writer, TASKS, (3, 4))
        writer.checkpoint(seal=True)
    next((tmp_path / "data").glob("*/*.h5")).write_bytes(b"short")
    for _ in range(2):  # the lock is let go of
        with pytest.raises(DataError, match=r"00000\.h5: damaged or not readable"):
            DatasetWriter.resume(tmp_path / "data")


# A limit on the size of files is the disk that is full: the kernel refuses the write all the same.
FULL = f"""
import resource, signal, sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
from made_up import TASKS, make_episode
from flowmbpo.data.dataset import writer
from flowmbpo.errors import DataError, StorageError
writer.SHARD_BYTES = 6_000
made = writer.DatasetWriter.create(sys.argv[1], "pair", TASKS, {{}})
made.add(1, *make_episode(TASKS[1], 50, 0), episode_id=0)
made.checkpoint(seal=True)
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))
try:
    if sys.argv[2] == "add":
        for number in range(1, 20):
            made.add(1, *make_episode(TASKS[1], 50, number), episode_id=number)
    else:
        made.add(1, *make_episode(TASKS[1], 50, 1), episode_id=1)
        made.finish()
except StorageError as error:
    print(error)
try:
    made.checkpoint()
except DataError as error:
    print(error)
"""


@pytest.mark.parametrize("when", ["add", "finish"])
def test_a_full_disk_keeps_the_last_checkpoint(tmp_path, when):
    path = tmp_path / "data"
    done = subprocess.run([sys.executable, "-c", FULL, path, when], capture_output=True, text=True)
    assert "cannot be written" in done.stdout and "Free some space" in done.stdout, done.stdout + done.stderr
    assert "an earlier write failed" in done.stdout
    assert not list(path.rglob("*.partial"))
    with DatasetWriter.resume(path) as writer:
        dataset = writer.finish()
    assert dataset.episode_table(1)["id"].tolist() == [0]
    assert verify(path) == []


def test_a_source_that_is_no_json_changes_nothing(tmp_path):
    with DatasetWriter.create(tmp_path / "data", "pair", TASKS, {"next": 1}) as writer:
        writer.source = {"next": np.int64(3)}
        with pytest.raises(DataError, match="stored as JSON"):
            writer.checkpoint()
    assert read_manifest(tmp_path / "data").source == {"next": 1}
