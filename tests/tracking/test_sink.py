"""Several sinks act as one, and a run gets those that its config names."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import pytest

from flowmbpo.config.experiment import ExperimentConfig
from flowmbpo.errors import ConfigError, DataError, RunDirectoryError, StorageError
from flowmbpo.runs.directory import RunDirectory
from flowmbpo.runs.sinks import make_sinks
from flowmbpo.tracking.sink import JsonlSink, MetricSink, MultiSink, Row, read_rows


class Recorder(MetricSink):
    def __init__(self, fails: bool = False) -> None:
        self.rows: list[Row] = []
        self.statuses: list[str] = []
        self.fails = fails

    def log(self, row: Row) -> None:
        self.rows.append(row)

    def close(self, status: str) -> None:
        self.statuses.append(status)
        if self.fails:
            raise RuntimeError("cannot close")


def experiment(*sinks: str) -> ExperimentConfig:
    return ExperimentConfig.model_validate({"name": "a", "phase": "mini", "tracking": {"sinks": sinks}})


def test_every_sink_gets_every_row() -> None:
    first, second = Recorder(), Recorder()
    sinks = MultiSink([first, second])
    sinks.log({"epoch": 1})
    sinks.close("done")
    assert first.rows == second.rows == [{"epoch": 1}]
    assert first.statuses == second.statuses == ["done"]


def test_sink_that_fails_to_close_leaves_none_open() -> None:
    sinks = [Recorder(), Recorder(fails=True), Recorder()]
    with pytest.raises(RuntimeError, match="cannot close"):
        MultiSink(sinks).close("failed")
    assert [sink.statuses for sink in sinks] == [["failed"]] * 3


def test_closing_twice_closes_each_sink_once() -> None:
    recorder = Recorder()
    sinks = MultiSink([recorder])
    sinks.close("interrupted")
    sinks.close("done")
    assert recorder.statuses == ["interrupted"]


def test_run_always_gets_metrics_and_console(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with RunDirectory.create(tmp_path / "run") as run:
        sinks = make_sinks(experiment(), run, "toy")
        sinks.log({"epoch": 1, "agent_steps": 4, "eval/return_mean": 2.0})
        sinks.close("done")
        assert read_rows(run.metrics) == [{"epoch": 1, "agent_steps": 4, "eval/return_mean": 2.0}]
    captured = capfd.readouterr()
    assert f"epoch 1/{experiment().training.epochs}" in captured.err and captured.out == ""


@pytest.mark.parametrize(
    ("policy_starts", "what"), [(False, "random episodes"), (True, "episodes of the loaded policy")]
)
def test_opening_says_who_acts_before_the_first_epoch(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], policy_starts: bool, what: str
) -> None:
    with RunDirectory.create(tmp_path / "run") as run:
        make_sinks(experiment(), run, "toy", policy_starts=policy_starts).close("done")
    said = capfd.readouterr().err
    assert f" {what} and " in said and said.count("random") == (not policy_starts)


def test_resumed_run_goes_on_in_its_metrics(tmp_path: Path) -> None:
    with RunDirectory.create(tmp_path / "run") as run:
        sinks = make_sinks(experiment(), run, "toy", console=False)
        for epoch in (1, 2, 3):
            sinks.log({"epoch": epoch})
        sinks.close("failed")
        sinks = make_sinks(experiment(), run, "toy", resume_epoch=1, console=False)
        sinks.log({"epoch": 2, "again": 1})
        sinks.close("done")
        assert read_rows(run.metrics) == [{"epoch": 1}, {"epoch": 2, "again": 1}]


def test_tensorboard_sink_writes_numbers_under_their_keys(tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    with RunDirectory.create(tmp_path / "run") as run:
        sinks = make_sinks(experiment("tensorboard"), run, "toy", console=False)
        sinks.log({"epoch": 3, "agent_steps": 8, "loss/actor": 0.5, "bad": float("nan"), "note": "x"})
        sinks.close("done")
        events: Any = accumulator.EventAccumulator(str(run.path / "tensorboard"))
    events.Reload()
    assert sorted(events.Tags()["scalars"]) == ["agent_steps", "loss/actor"]
    assert [(event.step, event.value) for event in events.Scalars("loss/actor")] == [(3, 0.5)]


@pytest.mark.parametrize(("name", "module"), [("tensorboard", "torch.utils.tensorboard"), ("wandb", "wandb")])
def test_sink_whose_package_is_missing_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, module: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with RunDirectory.create(tmp_path / "run") as run, pytest.raises(ConfigError, match=f"pip install {name}"):
        make_sinks(experiment(name), run, "toy", console=False)


def test_wandb_sink_is_named_in_the_run_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from flowmbpo.runs.directory import read_run
    from flowmbpo.tracking import wandb

    made: list[tuple[Any, ...]] = []

    class Stand(Recorder):
        def __init__(self, *arguments: Any) -> None:
            super().__init__()
            made.append(arguments)

    monkeypatch.setattr(wandb, "WandbSink", Stand)
    with RunDirectory.create(tmp_path / "run") as run:
        make_sinks(experiment("wandb"), run, "toy", console=False).close("done")
        assert read_run(run.path)["wandb_id"] == run.run_id
    assert made[0][1:] == ("toy", run.run_id, run.path)


def log_epochs(path: Path, *epochs: int) -> None:
    sink = JsonlSink(path)
    for epoch in epochs:
        sink.log({"epoch": epoch, "agent_steps": 10 * epoch, "loss/actor": 0.5})
    sink.close("done")


def test_rows_are_on_the_disk_once_logged(tmp_path: Path) -> None:
    sink = JsonlSink(tmp_path / "metrics.jsonl")
    sink.log({"epoch": 1, "agent_steps": 8, "note": "x"})
    assert json.loads((tmp_path / "metrics.jsonl").read_text()) == {"epoch": 1, "agent_steps": 8, "note": "x"}
    sink.close("done")


def test_non_finite_values_become_null_and_are_named(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    sink = JsonlSink(path)
    sink.log({"epoch": 1, "a": math.nan, "b": math.inf, "c": 1.0})
    sink.close("done")
    strict = json.loads(path.read_text(), parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert strict == {"epoch": 1, "a": None, "b": None, "c": 1.0, "nonfinite_keys": ["a", "b"]}


def test_resume_drops_later_rows_and_a_torn_last_line(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    log_epochs(path, 1, 2, 3, 4)
    with open(path, "a") as file:
        file.write('{"epoch": 5, "env_')
    sink = JsonlSink(path, resume_epoch=2)
    sink.log({"epoch": 3, "agent_steps": 31})
    sink.close("done")
    assert [(row["epoch"], row["agent_steps"]) for row in read_rows(path)] == [(1, 10), (2, 20), (3, 31)]
    assert [file.name for file in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_resume_keeps_rows_and_exact_numbers_up_to_its_epoch(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    sink = JsonlSink(path)
    sink.log({"epoch": 1, "loss/actor": 0.1 + 0.2, "tiny": 5e-324})
    sink.close("done")
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
