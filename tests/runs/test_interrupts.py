"""`flowmbpo train` as a process: Ctrl-C, exit codes, what it prints, and going on from there."""

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

from flowmbpo.checkpoints.load import load
from flowmbpo.presets.load import to_yaml
from flowmbpo.training.learner import Learner
from flowmbpo_cli.main import app

PROGRAM = [sys.executable, "-m", "flowmbpo_cli"]
PATIENCE_S = 120.0


@pytest.fixture
def process(tmp_path, repository, monkeypatch):
    """Start `flowmbpo` with the given arguments in a process group of its own."""
    monkeypatch.setenv("PYTHONPATH", str(repository))
    started = []

    def start(*args):
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        started.append(subprocess.Popen([*PROGRAM, *args], cwd=tmp_path, start_new_session=True, **pipes))
        return started[-1]

    yield start
    for running in started:
        if running.poll() is None:
            running.kill()
        running.communicate()


@pytest.fixture
def interrupted(process, tmp_path):
    """Train until an epoch is logged, then press Ctrl-C once, as a terminal does: in the whole process group."""

    def press(config, *options):
        (tmp_path / "tiny.yaml").write_text(to_yaml(config))
        run = tmp_path / "a run"
        running = process("train", "--preset", "tiny.yaml", "--out", str(run), *options)
        wait_for_rows(run, running)
        os.killpg(running.pid, signal.SIGINT)
        stdout, stderr = running.communicate(timeout=PATIENCE_S)
        return SimpleNamespace(run=run, code=running.returncode, stdout=stdout, stderr=stderr)

    return press


def wait_for_rows(run, running):
    limit = time.monotonic() + PATIENCE_S
    while not (run / "metrics.jsonl").exists() or not (run / "metrics.jsonl").read_text().count("\n"):
        assert running.poll() is None, running.communicate()
        assert time.monotonic() < limit
        time.sleep(0.02)


def check_saved(stopped, epochs):
    """Ended as the contract says, with a verified checkpoint of some epoch in between."""
    assert stopped.code == 75, stopped.stderr
    assert "Traceback" not in stopped.stderr
    loaded = load(stopped.run / "checkpoints" / "latest.pt")
    assert loaded.verified
    assert 0 < loaded.payload["epoch"] < epochs
    assert json.loads((stopped.run / "run.json").read_text())["status"] == "interrupted"


def command_to_go_on(text):
    line = next(line for line in text.splitlines() if line.startswith("Go on with:"))
    name, *args = shlex.split(line.partition(":")[2])
    assert name == "flowmbpo"
    return args


def test_ctrl_c_saves_and_the_printed_command_ends_as_if_nothing_had_been(
    interrupted, train, config, figures, same, tmp_path
):
    settings = config(**{"training.epochs": 20, "training.rounds": 2, "evaluation.every": 0, "checkpoint.every": 0})
    stopped = interrupted(settings)
    check_saved(stopped, 20)
    resumed = call(*command_to_go_on(stopped.stdout), "--json")
    assert resumed.exit_code == 0, resumed.stderr
    outcome = json.loads(resumed.stdout)
    whole = train(settings, out=tmp_path / "whole")
    assert (outcome["status"], outcome["epochs"]) == ("done", 20)
    assert outcome["final_return_mean"] == whole.final_return_mean
    assert same(figures(SimpleNamespace(checkpoint=outcome["checkpoint"])), figures(whole))


def test_with_json_the_document_says_interrupted_and_the_advice_is_on_stderr(config, tmp_path, monkeypatch):
    whole = Learner.update

    def update(learner):
        signal.raise_signal(signal.SIGINT)
        return whole(learner)

    monkeypatch.setattr(Learner, "update", update)
    (tmp_path / "tiny.yaml").write_text(to_yaml(config(**{"evaluation.every": 0, "checkpoint.every": 0})))
    finished = call("train", "--preset", "tiny.yaml", "--out", tmp_path / "a run", "--json")
    stopped = SimpleNamespace(
        run=tmp_path / "a run", code=finished.exit_code, stdout=finished.stdout, stderr=finished.stderr
    )
    check_saved(stopped, 4)
    document = json.loads(stopped.stdout)
    assert (document["status"], document["final_return_mean"]) == ("interrupted", None)
    assert command_to_go_on(stopped.stderr) == ["train", "--resume", str(stopped.run)]


@pytest.mark.slow
def test_ctrl_c_does_not_break_the_workers_of_a_simulator(interrupted, config):
    task = {"name": "walker-stand", "num_envs": 4, "workers": 2}
    endless = config(**{"task": task, "training.epochs": 100_000, "evaluation.every": 0, "checkpoint.every": 0})
    check_saved(interrupted(endless), 100_000)


def call(*args):
    return CliRunner().invoke(app, [str(arg) for arg in args])


def test_failing_run_gives_the_error_document_and_nothing_else_on_stdout(config, tmp_path):
    failing = config(**{"training.model_lr": 1e30, "training.max_nonfinite": 0, "training.clip.model": None})
    (tmp_path / "tiny.yaml").write_text(to_yaml(failing))
    finished = call("train", "--preset", "tiny.yaml", "--out", "run", "--json")
    assert finished.exit_code == 1
    document = json.loads(finished.stdout)
    assert set(document) == {"error"}
    assert document["error"]["kind"] == "non-finite"
    assert "training.max_nonfinite allows 0" in document["error"]["message"]
    assert "Traceback" not in finished.stderr
    assert json.loads((tmp_path / "run" / "run.json").read_text())["status"] == "failed"


@pytest.mark.parametrize(
    ("args", "part"),
    [
        (("--device", "tpu"), "'tpu'"),
        (("--set", "training.horizn=3"), "training.horizon"),
        (("--preset", "quikstart"), "quickstart"),
        (("--task", "walker-stnad"), "walker-stand"),
        (("--seed", "2000000000"), "seed"),
        (("--set", "training.gamma=1.5"), "training.gamma"),
        (("--resume", "nowhere"), "nowhere"),
        (("--resume",), "leave --resume away"),
    ],
)
def test_mistake_ends_with_code_2_one_message_and_nothing_written(tmp_path, args, part):
    finished = call("train", *args, "--json")
    assert finished.exit_code == 2
    assert part in json.loads(finished.stdout)["error"]["message"]
    assert "Traceback" not in finished.stderr
    assert list(tmp_path.iterdir()) == []
