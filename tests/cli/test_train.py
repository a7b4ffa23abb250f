"""`train` and `eval`: what the engine is asked for, and what people and programs get back."""

import json
from pathlib import Path

import pytest

from flowmbpo.envs.tasks import task_info
from flowmbpo.presets.load import load_experiment, to_yaml
from flowmbpo_cli.sources import existing_run
from flowmbpo_cli.train import with_resume_value


@pytest.fixture
def run_dir(tmp_path):
    """The directory of a run that was started with an override."""
    folder = tmp_path / "outputs" / "run"
    folder.mkdir(parents=True)
    config = load_experiment("mini-cartpole-flow", ["training.horizon=4"], seed=3, device="cpu")
    (folder / "config.yaml").write_text(to_yaml(config))
    return folder


def asked(engine):
    ((name, args, kwargs),) = engine.calls
    return name, args, kwargs


def test_without_a_preset_it_takes_quickstart(command, engine):
    assert command("train").code == 0
    name, (config,), kwargs = asked(engine)
    assert name == "train"
    assert config == load_experiment("quickstart")
    assert (kwargs["out"], kwargs["resume"]) == (None, None)
    assert kwargs["command"][0] == "flowmbpo"


def test_flags_reach_the_config(command, engine):
    flags = "--preset mini-cartpole-mlp --seed 4 --task walker-stand --device cpu --track wandb --out here"
    sets = ["--set", "training.epochs=1e1", "--set", "critic.units=[3, 4]"]
    assert command("train", *flags.split(), *sets).code == 0
    _, (config,), kwargs = asked(engine)
    assert (config.seed, config.task.name, config.device) == (4, "walker-stand", "cpu")
    assert (config.tracking.sinks, config.training.epochs, config.critic.units) == (("wandb",), 10, (3, 4))
    assert config.name.startswith("mini-cartpole-mlp+")
    assert kwargs["out"] == Path("here")


def test_track_none_turns_the_presets_sinks_off(command, engine, tmp_path):
    (tmp_path / "mine.yaml").write_text("extends: quickstart\ntracking: {sinks: [wandb]}\n")
    command("train", "--preset", "mine.yaml")
    command("train", "--preset", "mine.yaml", "--track", "none")
    assert [args[0].tracking.sinks for _, args, _ in engine.calls] == [("wandb",), ()]


@pytest.mark.parametrize(
    ("args", "filled"),
    [
        (["--resume"], ["--resume", "auto"]),
        (["--resume", "--json"], ["--resume", "auto", "--json"]),
        (["--seed", "3", "--resume"], ["--seed", "3", "--resume", "auto"]),
        (["--resume", "run", "--json"], ["--resume", "run", "--json"]),
        (["--resume=run"], ["--resume=run"]),
        (["--json"], ["--json"]),
        ([], []),
    ],
)
def test_resume_stands_with_and_without_a_value(args, filled):
    assert with_resume_value(args) == filled


def test_resume_without_a_value_asks_for_the_presets_own_run(command, engine):
    assert command("train", "--resume", "--seed", "3").code == 0
    _, (config,), kwargs = asked(engine)
    assert kwargs["resume"] == "auto"
    assert config == load_experiment("quickstart", seed=3)


def test_resume_of_a_run_takes_its_config(command, engine, run_dir):
    assert command("train", "--resume", run_dir).code == 0
    _, (config,), kwargs = asked(engine)
    assert kwargs["resume"] == run_dir
    assert config == load_experiment(run_dir / "config.yaml")


def test_resumed_run_keeps_its_name_when_it_trains_longer(command, engine, run_dir):
    stored = load_experiment(run_dir / "config.yaml")
    command("train", "--resume", run_dir, "--set", "training.epochs=9999")
    command(
        "train", "--resume", run_dir, "--preset", "mini-cartpole-flow", "--set", "training.horizon=4", "--seed", "3"
    )
    longer, named = (args[0] for _, args, _ in engine.calls)
    assert (longer.name, longer.training.epochs, longer.seed) == (stored.name, 9999, 3)
    assert named == stored.model_copy(update={"device": "auto"})


def test_json_is_one_document_and_everything_else_is_on_stderr(command, engine):
    engine.chatter = "epoch 1\n"
    engine.outcome = {
        "run_dir": "r",
        "status": "done",
        "final_return_mean": float("nan"),
        "returns": [1.0, float("inf")],
    }
    finished = command("train", "--json")
    assert finished.code == 0
    assert finished.document == {"run_dir": "r", "status": "done", "final_return_mean": None, "returns": [1.0, None]}
    assert "epoch 1" in finished.stderr


def test_people_read_a_table_and_what_to_do_next(command, engine):
    engine.chatter = "epoch 1\n"
    finished = command("train")
    assert "epoch 1" in finished.stdout and "run dir" in finished.stdout
    assert "flowmbpo eval outputs/x" in finished.stdout


def test_interrupted_outcome_exits_75(command, engine):
    engine.outcome = {"run_dir": "r", "status": "interrupted"}
    assert "flowmbpo train --resume r" in command("train").stdout
    finished = command("train", "--json")
    assert finished.code == 75
    assert finished.document["status"] == "interrupted"


def test_dry_run_trains_nothing(command, engine):
    engine.outcome = {"config": {"integrator": "heun"}, "parameters": {"dynamics": 1234567, "actor": 3}, "nfe": 4}
    finished = command("train", "--dry-run")
    assert asked(engine)[0] == "dry_run"
    assert (
        "1,234,567" in finished.stdout and "integrator" in finished.stdout and "nothing was trained" in finished.stdout
    )
    assert command("train", "--dry-run", "--json").document == engine.outcome


@pytest.fixture
def checkpoint(tmp_path):
    """A file where `eval` looks for one; the stand-in engine does not read it."""
    file = tmp_path / "run" / "checkpoints" / "latest.pt"
    file.parent.mkdir(parents=True)
    file.write_bytes(b"weights")
    return file


def test_eval_of_a_run_directory_takes_its_latest(command, engine, checkpoint, tmp_path):
    per_task = {"t": {"episodes": 3, "return_mean": 3.0}}
    engine.outcome = {"task": "t", "return_mean": 3.0, "planner": {"kind": "policy"}, "per_task": per_task}
    flags = "--episodes 3 --seed 5 --task walker-stand --device cpu --video a.mp4 --plot b.png"
    finished = command("eval", checkpoint.parent.parent, *flags.split())
    name, (path,), kwargs = asked(engine)
    assert (name, path) == ("evaluate_checkpoint", checkpoint)
    assert kwargs == {
        "episodes": 3,
        "seed": 5,
        "task": "walker-stand",
        "device": "cpu",
        "video": Path("a.mp4"),
        "plot": Path("b.png"),
        "planner": None,
    }
    assert "Wrote a.mp4" in finished.stdout and "Wrote b.png" in finished.stdout


def test_eval_json_is_the_engines_document(command, engine, checkpoint):
    engine.outcome = {"checkpoint": str(checkpoint), "returns": [1.0], "success": None}
    finished = command("eval", checkpoint, "--json")
    assert json.loads(finished.stdout) == engine.outcome
    assert asked(engine)[2]["device"] == "auto"


def test_bare_resume_with_more_epochs_means_the_presets_own_run(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    own = "outputs/quickstart/toy-pendulum-swingup/quickstart/seed3"
    (tmp_path / own).mkdir(parents=True)
    (tmp_path / own / "run.json").write_text("{}")
    assert existing_run(None, ["training.epochs=200"], task=None, seed=3) == Path(own)
    assert existing_run(None, [], task=None, seed=4) is None


@pytest.fixture
def place(tmp_path, monkeypatch):
    """Lay a run of the preset `mini-ant-baseline` down where it would be with that backend."""
    from flowmbpo.config.task import TaskConfig

    monkeypatch.chdir(tmp_path)

    def lay(backend):
        config = load_experiment("mini-ant-baseline")
        path = Path("outputs", config.phase, f"{backend}-ant", config.name, f"seed{config.seed}")
        path.mkdir(parents=True)
        task = TaskConfig(**{**config.task.model_dump(), "name": "ant", "backend": backend})
        (path / "run.json").write_text("{}")
        (path / "config.yaml").write_text(to_yaml(config.model_copy(update={"task": task})))
        return path

    return lay


def test_bare_resume_finds_the_run_of_another_backend_and_keeps_it(command, engine, place, capsys):
    run = place("rewarped")
    assert existing_run("mini-ant-baseline", [], task="ant", seed=None) == run
    assert f"goes on with {run}; there is no outputs/" in capsys.readouterr().err
    finished = command("train", "--preset", "mini-ant-baseline", "--task", "ant", "--resume")
    assert finished.code == 0
    _, (config,), kwargs = asked(engine)
    assert (kwargs["resume"], config.task.name, config.task.backend) == (run, "ant", "rewarped")
    for backend, found in (("rewarped", run), ("mujoco", None)):
        assert existing_run("mini-ant-baseline", [f"task.backend={backend}"], task="ant", seed=None) == found


def test_bare_resume_prefers_what_auto_takes_and_names_the_other(place, capsys):
    other, usual = place("rewarped"), place(task_info("ant").simulator)
    assert existing_run("mini-ant-baseline", [], task="ant", seed=None) == usual
    assert capsys.readouterr().err == f"--resume: goes on with {usual}; there is also {other}\n"
