"""Result files: complete, named after their checkpoint, never in each other's place."""

import csv
import json
from dataclasses import replace

import pytest

from flowmbpo.errors import StorageError
from flowmbpo.evaluation.results import write_results
from flowmbpo.evaluation.returns import Evaluation

SHA = "0123456789abcdef" * 4
META = {"checkpoint": "outputs/run/checkpoints/best.pt", "checkpoint_sha256": SHA, "seed": 7, "policy": "actor"}
EVALUATION = Evaluation(
    returns=(1.5, 0.1 + 0.2), lengths=(3, 4), successes=(1.0, None), tasks=("walker-stand", "walker-stand")
)


def test_names_carry_checkpoint_hash_and_seed(tmp_path):
    files = write_results(tmp_path / "results" / "deep", EVALUATION, META)
    assert files.json.name == "best-0123456789ab-seed7.json"
    assert files.csv.name == "best-0123456789ab-seed7.csv"
    assert sorted(path.name for path in files.json.parent.iterdir()) == sorted(
        path.name for path in (files.json, files.csv, files.readme)
    )


def test_json_holds_the_evaluation_and_what_it_was_of(tmp_path):
    document = json.loads(write_results(tmp_path, EVALUATION, META).json.read_text())
    assert document == {**META, "task": "walker-stand", "planner": {"kind": "policy"}, **EVALUATION.to_dict()}
    assert document["success"] == 1.0 and document["return_mean"] == pytest.approx(0.9)


def test_csv_has_one_exact_row_per_episode(tmp_path):
    rows = list(csv.DictReader(write_results(tmp_path, EVALUATION, META).csv.open()))
    assert [float(row["return"]) for row in rows] == list(EVALUATION.returns)
    assert [row["length"] for row in rows] == ["3", "4"]
    assert [row["success"] for row in rows] == ["1.0", ""]


def test_another_evaluation_of_the_same_checkpoint_and_seed_is_kept(tmp_path):
    first = write_results(tmp_path, EVALUATION, META)
    before = (first.json.read_bytes(), first.csv.read_bytes())
    second = write_results(tmp_path, replace(EVALUATION, returns=(2.0, 2.0)), META)
    assert second.json.name == "best-0123456789ab-seed7-2.json"
    assert (first.json.read_bytes(), first.csv.read_bytes()) == before
    assert json.loads(second.json.read_text())["returns"] == [2.0, 2.0]


def test_writing_the_same_evaluation_again_changes_nothing(tmp_path):
    write_results(tmp_path, EVALUATION, META)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    write_results(tmp_path, EVALUATION, META)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_readme_names_every_checkpoint_and_its_whole_hash(tmp_path):
    write_results(tmp_path, EVALUATION, META)
    other = {**META, "checkpoint": "latest.pt", "checkpoint_sha256": "f" * 64}
    readme = write_results(tmp_path, EVALUATION, other).readme.read_text()
    assert f"| `outputs/run/checkpoints/best.pt` | `{SHA}` | walker-stand | 7 | 2 | 0.9 +- 0.6 | 1.00 |" in readme
    assert f"| `latest.pt` | `{'f' * 64}` |" in readme


def test_a_foreign_file_in_the_folder_does_not_cost_the_evaluation(tmp_path):
    (tmp_path / "other-seed1.json").write_text("{")
    files = write_results(tmp_path, EVALUATION, META)
    assert files.json.exists()
    assert "| `other-seed1` | not readable |" in files.readme.read_text()


def test_meta_without_its_checkpoint_or_over_a_figure_is_refused(tmp_path):
    with pytest.raises(ValueError, match="checkpoint_sha256"):
        write_results(tmp_path, EVALUATION, {"checkpoint": "a.pt", "seed": 1})
    with pytest.raises(ValueError, match="returns"):
        write_results(tmp_path, EVALUATION, {**META, "returns": []})
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_made_is_a_storage_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="file"):
        write_results(tmp_path / "file", EVALUATION, META)


def test_a_refused_write_leaves_no_claim_behind(tmp_path, monkeypatch):
    def full_disk(path, data):
        raise StorageError(f"{path}: cannot be written: No space left on device")

    monkeypatch.setattr("flowmbpo.evaluation.results.write_bytes_atomic", full_disk)
    with pytest.raises(StorageError, match="No space"):
        write_results(tmp_path, EVALUATION, META)
    assert not list(tmp_path.iterdir())
