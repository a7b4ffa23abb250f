"""Runs that cannot start leave nothing behind; runs that break say why and lose nothing saved."""

import errno
import json
import math
import signal
import threading

import pytest
import torch

from flowmbpo.checkpoints.load import load
from flowmbpo.checkpoints.save import CheckpointStore
from flowmbpo.errors import (
    ConfigError,
    EnvironmentFailure,
    EnvironmentUnavailableError,
    Interrupted,
    NonFiniteError,
    StorageError,
)
from flowmbpo.runs.directory import RunDirectory
from flowmbpo.runs.resume import stop_on_signals
from flowmbpo.runs.session import TrainingSession
from flowmbpo.tracking.sink import read_rows
from flowmbpo.training.collector import Collector
from flowmbpo.training.learner import Learner


def record(run):
    return json.loads((run / "run.json").read_text())


@pytest.mark.parametrize(
    ("key", "value", "error", "message"),
    [
        ("task.name", "walker-stnad", ConfigError, "walker-stand"),
        ("task.name", "dflex-ant", EnvironmentUnavailableError, "Tasks that may run now: mujoco-ant"),
        ("training.wm_buffer_size", 7, ConfigError, "training.wm_buffer_size 7 is too small for task.num_envs 4"),
        ("device", "cuda", ConfigError, "device 'cuda': torch sees no GPU"),
    ],
)
def test_run_that_cannot_start_leaves_nothing_behind(train, config, tmp_path, monkeypatch, key, value, error, message):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(error) as caught:
        train(config(**{key: value}), out=tmp_path / "run")
    assert message in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_directory_with_other_files_is_refused_and_left_alone(train, config, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(Exception, match=r"is not empty and holds no run \(found notes.txt\)"):
        train(config(), out=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def poison_rewards(monkeypatch, at_epoch):
    whole = Learner.update

    def update(learner):
        if learner.epoch == at_epoch:
            learner.batches.replay.reward.fill_(math.nan)
        return whole(learner)

    monkeypatch.setattr(Learner, "update", update)


def test_too_many_non_finite_updates_fail_the_run_and_keep_their_batches(train, config, tmp_path, monkeypatch):
    poison_rewards(monkeypatch, at_epoch=3)
    run = tmp_path / "run"
    with pytest.raises(NonFiniteError, match=r"training\.max_nonfinite allows 1"):
        train(config(**{"training.max_nonfinite": 1}), out=run)
    found = record(run)
    assert (found["status"], found["ended"] is not None) == ("failed", True)
    assert found["error"].startswith("NonFiniteError: 2 non-finite updates")
    dumps = sorted((run / "nonfinite").iterdir())
    assert [path.name for path in dumps] == ["epoch000003-model-1.pt", "epoch000003-model-2.pt"]
    batch = torch.load(dumps[0], weights_only=True)
    assert batch["reward"].isnan().any()
    loaded = load(run / "checkpoints" / "latest.pt")  # that of epoch 2
    assert loaded.verified
    assert loaded.payload["epoch"] == 2


def test_broken_episodes_are_counted_in_the_outcome_and_dumped_with_their_actions(train, config, tmp_path, monkeypatch):
    whole = Collector.collect

    def collect(collector, agent, epoch, after_step):
        if epoch == 2:
            collector.env.simulator._now.state[1] = math.nan
        return whole(collector, agent, epoch, after_step)

    monkeypatch.setattr(Collector, "collect", collect)
    run = tmp_path / "run"
    outcome = train(config(), out=run)
    assert (outcome.status, outcome.faults, outcome.to_dict()["faults"]) == ("done", 1, 1)
    (dump,) = (run / "nonfinite").iterdir()
    fault = torch.load(dump, weights_only=True)
    assert fault["index"] == 1
    assert len(fault["actions"]) == fault["step"] > 1
    assert fault["state"].endswith("state [nan, nan]")


def test_few_non_finite_updates_are_counted_and_survived(train, config, tmp_path, monkeypatch):
    poison_rewards(monkeypatch, at_epoch=2)
    outcome = train(config(), out=tmp_path / "run")
    assert (outcome.status, outcome.nonfinite) == ("done", 4)
    rows = [row for row in read_rows(tmp_path / "run" / "metrics.jsonl") if "loss/reward" in row]
    assert [row["nonfinite/count"] for row in rows] == [0, 0, 2, 4]
    assert rows[2]["loss/reward"] is None
    assert "loss/reward" in rows[2]["nonfinite_keys"]
    weights = load(tmp_path / "run" / "checkpoints" / "latest.pt").payload["agent"]
    assert all(torch.isfinite(value).all() for value in weights.values())


def full_disk(*args, **kwargs):
    raise OSError(errno.ENOSPC, "No space left on device")


def test_full_disk_fails_the_run_and_keeps_the_checkpoint_before(train, config, tmp_path, monkeypatch):
    run = tmp_path / "run"
    save = CheckpointStore.save

    def fail_later(store, name, payload, replay=None):
        if payload["epoch"] > 2:
            monkeypatch.setattr(torch, "save", full_disk)
        return save(store, name, payload, replay)

    monkeypatch.setattr(CheckpointStore, "save", fail_later)
    with pytest.raises(StorageError, match="Free some space"):
        train(config(), out=run)
    assert record(run)["status"] == "failed"
    assert record(run)["error"].startswith("StorageError")
    loaded = load(run / "checkpoints" / "latest.pt")
    assert (loaded.verified, loaded.payload["epoch"]) == (True, 2)
    assert not list(run.rglob("*.partial"))


def test_cause_is_raised_even_where_the_disk_refuses_to_note_it(train, config, tmp_path, monkeypatch):
    def update(learner):
        monkeypatch.setattr(RunDirectory, "update_status", refuse)
        raise EnvironmentFailure("the simulator diverged")

    def refuse(*args, **kwargs):
        raise StorageError("run.json: cannot be written")

    monkeypatch.setattr(Learner, "update", update)
    with pytest.raises(EnvironmentFailure, match="the simulator diverged"):
        train(config(), out=tmp_path / "run")


def test_failing_final_evaluation_loses_no_training(train, config, tmp_path, monkeypatch):
    def fail(session, epoch):
        raise EnvironmentFailure("a worker died")

    monkeypatch.setattr(TrainingSession, "_evaluate", fail)
    with pytest.raises(EnvironmentFailure):
        train(config(**{"evaluation.every": 0, "checkpoint.every": 0}), out=tmp_path / "run")
    assert load(tmp_path / "run" / "checkpoints" / "latest.pt").payload["epoch"] == 4
    assert record(tmp_path / "run")["error"] == "EnvironmentFailure: a worker died"


def interrupt_in_epoch(monkeypatch, number, signals):
    whole = Learner.update

    def update(learner):
        if learner.epoch == number:
            for name in signals:
                signal.raise_signal(name)
        return whole(learner)

    monkeypatch.setattr(Learner, "update", update)


@pytest.mark.parametrize("name", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_signal_is_honoured_after_the_epoch_it_came_in(train, config, tmp_path, monkeypatch, name):
    before = signal.getsignal(name)
    interrupt_in_epoch(monkeypatch, 0, [name])
    outcome = train(config(), out=tmp_path / "run")
    assert (outcome.status, outcome.epochs, outcome.final_return_mean, outcome.eval_episodes) == (
        "interrupted",
        1,
        None,
        0,
    )
    assert record(tmp_path / "run")["status"] == "interrupted"
    assert load(tmp_path / "run" / "checkpoints" / "latest.pt").payload["epoch"] == 1
    assert signal.getsignal(name) is before


def test_second_ctrl_c_stops_at_once_and_names_the_last_checkpoint(train, config, tmp_path, monkeypatch):
    interrupt_in_epoch(monkeypatch, 3, [signal.SIGINT, signal.SIGINT])
    run = tmp_path / "a run"
    with pytest.raises(Interrupted) as caught:
        train(config(), out=run)
    assert caught.value.exit_code == 75
    assert f"flowmbpo train --resume '{run}'" in str(caught.value)
    assert record(run)["status"] == "interrupted"
    assert load(run / "checkpoints" / "latest.pt").payload["epoch"] == 2
    monkeypatch.undo()
    assert train(config(), resume=run).status == "done"


def test_second_ctrl_c_before_any_checkpoint_is_a_failure(train, config, tmp_path, monkeypatch):
    interrupt_in_epoch(monkeypatch, 0, [signal.SIGINT, signal.SIGINT])
    with pytest.raises(KeyboardInterrupt):
        train(config(), out=tmp_path / "run")
    assert record(tmp_path / "run")["status"] == "failed"


def test_signals_outside_the_main_thread_are_left_to_others():
    found = []

    def inside():
        with stop_on_signals() as request:
            found.append(bool(request))

    thread = threading.Thread(target=inside)
    thread.start()
    thread.join()
    assert found == [False]
