"""What a resume accepts and refuses; a refusal leaves the run exactly as it was."""

import json
import shutil

import pytest
import torch

from flowmbpo.checkpoints.load import load
from flowmbpo.checkpoints.save import CheckpointStore
from flowmbpo.errors import CheckpointError, ConfigError, RunDirectoryError
from flowmbpo.runs.directory import RunDirectory
from flowmbpo.runs.resume import as_started, load_for_resume, restore
from flowmbpo.runs.sinks import _log_changed_rates
from flowmbpo.tracking.sink import read_rows


@pytest.fixture
def refused(train):
    """Resume, expect `error`, and check that nothing in the run directory changed; the message."""

    def expect(error, config, resume, run, **options):
        def contents():
            return {
                file: file.read_bytes() for file in sorted(run.rglob("*")) if file.is_file() and file.name != ".lock"
            }

        before = contents()
        with pytest.raises(error) as caught:
            train(config, resume=resume, **options)
        assert contents() == before
        return str(caught.value)

    return expect


def record(run):
    return json.loads((run / "run.json").read_text())


@pytest.mark.parametrize(
    ("key", "value", "shown"),
    [
        ("training.horizon", 5, "training.horizon: 4 -> 5"),
        ("seed", 1, "seed: 0 -> 1"),
        ("training.epochs", 3, "training.epochs: 4 -> 3"),
        ("task.num_envs", 8, "task.num_envs: 4 -> 8"),
        ("model.dynamics.units", [8], "model.dynamics.units: [16, 16] -> [8]"),
        ("training.max_nonfinite", 3, "training.max_nonfinite: 20 -> 3"),
        ("compute.precision", "high", "compute.precision: highest -> high"),
    ],
)
def test_other_config_is_refused_showing_both_values(refused, config, run, key, value, shown):
    message = refused(ConfigError, config(**{key: value}), run, run)
    assert f"\n  {shown}\n" in message
    assert message.count(" -> ") == 2  # the heading, and this key alone


@pytest.mark.parametrize("stated", [{}, {"sha256": "0" * 64}])
def test_what_a_run_learnt_of_its_initial_checkpoint_need_not_be_stated_again(config, stated):
    asked = config(initial={"checkpoint": "a.pt", **stated})
    stored = config(initial={"checkpoint": "a.pt", "sha256": "0" * 64, "random_episodes": 0})
    assert as_started(asked, stored) == stored
    other = config(initial={"checkpoint": "a.pt", "sha256": "1" * 64})
    assert as_started(other, stored).initial.sha256 == "1" * 64  # and so it is refused


def test_change_of_kind_shows_the_kind(refused, config, run):
    message = refused(ConfigError, config(**{"actor": {"kind": "flow", "units": [16]}}), run, run)
    assert "actor.kind: gaussian -> flow" in message


def test_free_keys_may_change_and_the_new_config_is_stored(train, config, run):
    changes = {
        "evaluation.episodes": 3,
        "evaluation.every": 1,
        "checkpoint.every": 3,
        "checkpoint.keep": 1,
        "tracking.every": 2,
        "compute.threads": None,
        "training.epochs": 6,
        "description": "longer",
    }
    outcome = train(config(**changes), resume=run)
    assert (outcome.status, outcome.epochs, outcome.eval_episodes) == ("done", 6, 3)
    assert "epochs: 6" in (run / "config.yaml").read_text()
    assert "epochs: 4" in (run / "logs" / "config-1.yaml").read_text()
    assert sorted(path.name for path in (run / "checkpoints").glob("epoch*.pt")) == ["epoch000006.pt"]


def test_resume_is_written_down_and_the_earlier_end_forgotten(train, config, run):
    with RunDirectory.open_existing(run) as directory:
        directory.update_status("failed", error="NonFiniteError: too many")
    train(config(**{"training.epochs": 5}), resume=run, command=["flowmbpo", "train", "--resume"])
    found = record(run)
    entry = found["resumed_from"][-1]
    assert (entry["checkpoint"], entry["epoch"], entry["previous_status"]) == ("latest.pt", 4, "failed")
    assert (found["status"], found["error"], found["outcome"]["epochs"]) == ("done", None, 5)
    assert found["command"] == ["flowmbpo", "train", "--resume"]


def test_clock_goes_on_where_it_stopped(train, config, run):
    before = [row for row in read_rows(run / "metrics.jsonl") if "wall_s" in row][-1]
    outcome = train(config(**{"training.epochs": 5}), resume=run)
    assert outcome.cpu_s > before["cpu_s"]
    assert outcome.wall_s > before["wall_s"]


def test_more_epochs_under_a_linear_schedule_warn_of_both_rates(train, config, run, caplog):
    train(config(**{"training.epochs": 5}), resume=run)
    (said,) = (line for line in caplog.messages if "lr_schedule" in line)
    old, training = config().training.final_lr, config().training
    new = training.model_lr + (training.final_lr - training.model_lr) * 4 / 5
    assert said.startswith("training.epochs: 4 -> 5") and f"at epoch 4 they jump: model {old:.3g} -> {new:.3g}" in said


@pytest.mark.parametrize(("schedule", "epochs"), [("constant", 9), ("linear", 4)])
def test_rates_that_stay_are_not_warned_of(config, run, caplog, schedule, epochs):
    training = config(**{"training.lr_schedule": schedule, "training.epochs": epochs}).training
    _log_changed_rates(training, load(run / "checkpoints" / "latest.pt"))
    assert not caplog.messages


def test_run_directory_that_holds_a_run_is_refused_without_resume(train, config, run):
    before = record(run)
    with pytest.raises(RunDirectoryError, match=r"already holds a run \(status done\).*--resume.*--out"):
        train(config(), out=run)
    assert record(run) == before


def test_auto_finds_the_directory_this_config_would_have(train, config):
    first = train(config(**{"training.epochs": 2}))
    assert first.run_dir.endswith("outputs/test/toy-two-goals/tiny/seed0")
    second = train(config(**{"training.epochs": 3}), resume="auto")
    assert (second.run_dir, second.epochs) == (first.run_dir, 3)


def test_auto_with_nothing_there_says_so_and_makes_nothing(train, config, tmp_path):
    with pytest.raises(RunDirectoryError, match=r"no run in .*tiny/seed0.*leave --resume away"):
        train(config(), resume="auto")
    assert list(tmp_path.iterdir()) == []


def test_run_that_ended_before_its_first_checkpoint_says_what_to_do(train, config, tmp_path):
    RunDirectory.create(tmp_path / "run").close()
    with pytest.raises(RunDirectoryError, match=r"before its first checkpoint.*remove the directory"):
        train(config(), resume=tmp_path / "run")


def test_live_run_without_a_checkpoint_is_not_called_ended(train, config, tmp_path):
    with (
        RunDirectory.create(tmp_path / "run"),
        pytest.raises(RunDirectoryError, match=r"in use by process \d+.*Wait for it"),
    ):
        train(config(), resume=tmp_path / "run")


def test_best_is_refused_because_it_has_no_replay_buffer(refused, config, run):
    message = refused(CheckpointError, config(), run / "checkpoints" / "best.pt", run)
    assert "best.pt" in message
    assert "resume from latest.pt" in message


def test_missing_replay_buffer_is_named(refused, config, run):
    (buffer,) = (run / "checkpoints").glob("replay-*.pt")
    buffer.unlink()
    assert buffer.name in refused(CheckpointError, config(), run, run)


def test_lone_file_is_no_run_to_continue(train, config, run, tmp_path):
    lone = shutil.copy(run / "checkpoints" / "latest.pt", tmp_path / "lone.pt")
    with pytest.raises(RunDirectoryError, match=r"lone\.pt.*lies in no run directory"):
        train(config(), resume=tmp_path / lone)


def test_out_that_names_another_directory_is_refused(refused, config, run, tmp_path):
    message = refused(RunDirectoryError, config(), run, run, out=tmp_path / "other")
    assert "stays in its own directory" in message
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("name", ["latest.pt", "replay"])
@pytest.mark.parametrize("damage", ["truncated", "flipped"])
def test_damaged_files_are_refused(refused, config, run, name, damage):
    (file,) = (run / "checkpoints").glob(f"{name}*")
    data = bytearray(file.read_bytes())
    if damage == "truncated":
        del data[len(data) // 2 :]
    else:
        data[len(data) // 2] ^= 1
    file.write_bytes(bytes(data))
    message = refused(CheckpointError, config(), run, run)
    assert file.name in message
    assert "bug" not in message


def test_foreign_file_in_place_of_the_checkpoint_is_refused(refused, config, run):
    torch.save({"state_dict": {"weight": torch.zeros(3)}}, run / "checkpoints" / "latest.pt")
    (run / "checkpoints" / "manifest.json").unlink()
    assert "is not a flowmbpo checkpoint" in refused(CheckpointError, config(), run, run)


def test_weights_of_another_architecture_are_refused_naming_the_tensors(refused, config, run):
    loaded, _ = load_for_resume(run / "checkpoints" / "latest.pt", config())
    agent = dict(loaded.payload["agent"])
    agent["actor.mean.0.weight"] = torch.zeros(3, 3)
    del agent["actor.logstd"]
    payload = {key: value for key, value in loaded.payload.items() if key not in ("format", "version", "replay")}
    CheckpointStore(run / "checkpoints").save("latest", {**payload, "agent": agent}, {})
    message = refused(CheckpointError, config(), run, run)
    assert "another architecture" in message
    assert "actor.logstd" in message
    assert "actor.mean.0.weight is (3, 3)" in message


def test_run_that_another_process_holds_is_refused(train, config, run):
    with RunDirectory.open_existing(run), pytest.raises(RunDirectoryError, match="in use by process"):
        train(config(), resume=run)


def test_restore_brings_learner_and_collector_back(config, run, assemble):
    loaded, _ = load_for_resume(run / "checkpoints" / "latest.pt", config())
    learner, collector = assemble(config())
    restore(learner, collector, loaded)
    assert (learner.epoch, learner.started) == (4, True)
    assert collector.replay.num_transitions == collector.agent_steps == loaded.payload["agent_steps"]
    states = {name: generator.get_state() for name, generator in learner.generators.items()}
    assert all(torch.equal(states[name], loaded.payload["rng"]["generators"][name]) for name in states)
