"""metrics.jsonl survives kills, resumes and values that JSON cannot hold."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from flowmbpo.errors import DataError, RunDirectoryError, StorageError
from flowmbpo.tracking.sink import JsonlSink, read_rows


def log_epochs(path: Path, *epochs: int) -> None:
    with JsonlSink(path) as sink:
        for epoch in epochs:
            sink.log({"epoch": epoch, "env_steps": 10 * epoch, "loss/actor": 0.5})


def test_rows_are_on_the_disk_as_soon_as_they_are_logged(tmp_path: Path) -> None:
    sink = JsonlSink(tmp_path / "metrics.jsonl")
    sink.log({"epoch": 1, "env_steps": 8, "note": "x"})
    assert json.loads((tmp_path / "metrics.jsonl").read_text()) == {"epoch": 1, "env_steps": 8, "note": "x"}
    sink.close("done")


def test_non_finite_values_become_null_and_are_named(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    with JsonlSink(path) as sink:
        sink.log({"epoch": 1, "a": math.nan, "b": math.inf, "c": 1.0})
    strict = json.loads(path.read_text(), parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert strict == {"epoch": 1, "a": None, "b": None, "c": 1.0, "nonfinite_keys": ["a", "b"]}


def test_resume_drops_later_rows_and_a_torn_last_line(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    log_epochs(path, 1, 2, 3, 4)
    with open(path, "a") as file:
        file.write('{"epoch": 5, "env_')
    with JsonlSink(path, resume_epoch=2) as sink:
        sink.log({"epoch": 3, "env_steps": 31})
    assert [(row["epoch"], row["env_steps"]) for row in read_rows(path)] == [(1, 10), (2, 20), (3, 31)]
    assert [file.name for file in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_resume_keeps_rows_and_exact_numbers_up_to_its_epoch(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    with JsonlSink(path) as sink:
        sink.log({"epoch": 1, "loss/actor": 0.1 + 0.2, "tiny": 5e-324})
    before = path.read_bytes()
    JsonlSink(path, resume_epoch=1).close("done")
    assert path.read_bytes() == before


def test_resume_without_an_earlier_file_starts_one(tmp_path: Path) -> None:
    JsonlSink(tmp_path / "metrics.jsonl", resume_epoch=5).close("done")
    assert read_rows(tmp_path / "metrics.jsonl") == []


def test_new_run_never_appends_to_old_metrics(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    log_epochs(path, 1)
    with pytest.raises(RunDirectoryError, match="already holds metrics"):
        JsonlSink(path)
    assert len(read_rows(path)) == 1


@pytest.mark.parametrize("line", ["nonsense", "[1]"])
def test_damage_before_the_last_line_is_reported_with_its_line(tmp_path: Path, line: str) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(f'{{"epoch": 1}}\n{line}\n{{"epoch": 2}}\n')
    with pytest.raises(DataError, match=r"metrics\.jsonl, line 2"):
        read_rows(path)


def test_missing_file_is_an_error_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"metrics\.jsonl: cannot be read"):
        read_rows(tmp_path / "metrics.jsonl")


def test_full_disk_is_reported_as_such() -> None:
    sink = JsonlSink(Path("/dev/full"))
    with pytest.raises(StorageError, match=r"/dev/full: cannot be written: No space left.*Free some space"):
        sink.log({"epoch": 1})
    with pytest.raises(StorageError):  # the line is still in the buffer
        sink.close("failed")
