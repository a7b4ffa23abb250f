"""Exit codes, error documents, and short messages, whatever fails."""

import errno
import json
import os
import subprocess
import sys

import pytest

from flowmbpo.errors import CheckpointError, Interrupted, NonFiniteError, StorageError

MODULE = [sys.executable, "-m", "flowmbpo_cli"]


def run(*args, cwd, code=None):
    """The command as a process of its own; `code` runs in place of the console script."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    line = MODULE if code is None else [sys.executable, "-c", code]
    return subprocess.run([*line, *args], cwd=cwd, env=environment, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["tran"], "No such command 'tran'. Did you mean 'train'"),
        (["presets", "lst"], "No such command 'lst'. Did you mean 'list'?"),
        (["train", "--sede", "3"], "--seed"),
        (["train", "--seed", "x"], "Invalid value for '--seed'"),
        (["train", "--seed", "-1"], "Invalid value for '--seed'"),
        (["train", "--device", "tpu"], "'--device': 'tpu' is not one of 'auto', 'cpu', 'cuda'"),
        (["train", "--track", "paper"], "'--track': 'paper' is not one of 'none', 'wandb', 'tensorboard'"),
        (["train", "extra"], "extra"),
        (["eval"], "Missing argument 'CKPT'"),
        (["eval", "x", "--episodes", "0"], "Invalid value for '--episodes'"),
        (["eval", "x", "--video", "film.avi"], "must end in .mp4"),
        (["eval", "x", "--plot", "nowhere/curve.png"], "the folder 'nowhere' does not exist"),
    ],
)
def test_usage_error_exits_2_with_one_document(command, args, message):
    plain, document = command(*args), command(*args, "--json")
    assert plain.code == document.code == 2
    assert plain.stdout == ""
    assert message in plain.stderr and "Traceback" not in plain.stderr
    assert document.document["error"]["kind"] == "usage"
    assert message in document.document["error"]["message"]


@pytest.mark.parametrize(
    ("args", "kind", "message"),
    [
        (["train", "--preset", "quickstrt"], "config", "unknown preset 'quickstrt'. Did you mean 'quickstart'?"),
        (["train", "--preset", "gone.yaml"], "config", "'gone.yaml' does not exist"),
        (["train", "--task", "walker-stnd"], "config", "Did you mean 'walker-stand'?"),
        (["train", "--set", "training.gama=1"], "config", "Did you mean 'training.gamma'?"),
        (["train", "--set", "training.gamma=2"], "config", "training.gamma: 2 is not allowed"),
        (["train", "--resume", "gone"], "run-directory", "--resume gone: does not exist"),
        (["train", "--resume", "."], "run-directory", "holds no run"),
        (["eval", "gone.pt"], "checkpoint", "gone.pt: does not exist"),
        (["eval", "x.pt", "--task", "walker-stnd"], "config", "Did you mean 'walker-stand'?"),
        (["parity", "quickstart", "quickstrt"], "config", "Did you mean 'quickstart'?"),
        (["presets", "show", "nope"], "config", "unknown preset 'nope'"),
    ],
)
def test_user_error_exits_2_with_one_short_message(command, args, kind, message):
    finished = command(*args, "--json")
    said = finished.document["error"]["message"]
    assert finished.code == 2 and message in said
    assert finished.document == {"error": {"kind": kind, "message": said}}
    assert "Traceback" not in finished.stderr


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["train", "--set", "training.gama=1"], "Did you mean 'training.gamma'?"),
        (["train", "--resume", "gone"], "--resume gone: does not exist"),
        (["eval", "gone.pt"], "gone.pt: does not exist"),
        (["parity", "quickstart", "quickstrt"], "Did you mean 'quickstart'?"),
        (["presets", "show", "nope"], "unknown preset 'nope'"),
    ],
)
def test_user_error_without_json_is_on_stderr_alone(command, args, message):
    finished = command(*args)
    assert (finished.code, finished.stdout) == (2, "")
    assert message in finished.stderr and "Traceback" not in finished.stderr


@pytest.mark.parametrize(
    ("error", "code", "kind"),
    [
        (Interrupted("saved; go on with --resume"), 75, "interrupted"),
        (NonFiniteError("too many"), 1, "non-finite"),
        (StorageError("full"), 1, "storage"),
        (CheckpointError("damaged"), 2, "checkpoint"),
        (OSError(errno.ENOSPC, "No space left on device", "metrics.jsonl"), 1, "storage"),
        (PermissionError(errno.EACCES, "Permission denied", "outputs"), 1, "storage"),
        (KeyboardInterrupt(), 1, "interrupted"),
    ],
)
def test_failure_of_the_engine_has_its_exit_code_and_kind(command, engine, error, code, kind):
    engine.error = error
    finished = command("train", "--json")
    assert finished.code == code
    assert finished.document["error"]["kind"] == kind
    assert finished.stderr.count("\n") <= 2


def test_full_disk_is_said_in_words(command, engine):
    engine.error = OSError(errno.ENOSPC, "No space left on device", "metrics.jsonl")
    assert "the disk is full while writing 'metrics.jsonl'. Free some space" in command("train").stderr


def test_debug_adds_the_traceback_wherever_it_stands(command):
    for args in (["--debug", "train", "--preset", "nope"], ["train", "--preset", "nope", "--debug"]):
        finished = command(*args)
        assert finished.code == 2
        assert "Traceback" in finished.stderr and "Error: unknown preset 'nope'" in finished.stderr


BUG = """
import sys
from flowmbpo_cli import doctor, main
def broken(name):
    raise ZeroDivisionError("by zero")
doctor.installed = broken
main.main()
"""


def test_unexpected_exception_is_called_a_bug(tmp_path):
    finished = run("version", "--json", cwd=tmp_path, code=BUG)
    assert finished.returncode == 1
    error = json.loads(finished.stdout)["error"]
    assert error["kind"] == "bug"
    assert "ZeroDivisionError: by zero" in error["message"] and "--debug" in error["message"]
    assert "Traceback" not in finished.stderr
    assert "Traceback" in run("version", "--debug", cwd=tmp_path, code=BUG).stderr


NOISY = """
import os, sys
from flowmbpo_cli import doctor, main
inner = doctor.installed
def noisy(name):
    os.write(1, b"from C\\n")
    os.system("echo from a child")
    return inner(name)
doctor.installed = noisy
main.main()
"""


def test_only_the_document_reaches_stdout_whoever_writes(tmp_path):
    finished = run("version", "--json", cwd=tmp_path, code=NOISY)
    assert set(json.loads(finished.stdout)) == {"flowmbpo", "python", "torch"}
    assert "from C" in finished.stderr and "from a child" in finished.stderr
    assert "from C" in run("version", cwd=tmp_path, code=NOISY).stdout


def test_usage_error_of_the_process_obeys_the_contract(tmp_path):
    finished = run("train", "--no-such-option", "--json", cwd=tmp_path)
    assert finished.returncode == 2
    assert json.loads(finished.stdout)["error"]["kind"] == "usage"


LIGHT = """
import atexit, sys
heavy = ("torch", "numpy", "wandb", "matplotlib", "mujoco")
atexit.register(lambda: print("LOADED", *[name for name in heavy if name in sys.modules], file=sys.stderr))
from flowmbpo_cli.main import main
main()
"""


EACH = """
import json, sys
from flowmbpo_cli.main import main
heavy = ("torch", "numpy", "wandb", "matplotlib", "mujoco")
for args in json.loads(sys.argv[1]):
    sys.argv[1:] = args
    try:
        main()
    except SystemExit:
        pass
    print("LOADED", *args, *[name for name in heavy if name in sys.modules], file=sys.stderr)
"""


def test_command_that_computes_nothing_imports_no_torch(tmp_path):
    each = [
        ["--help"],
        ["train", "--help"],
        ["version"],
        ["presets", "list"],
        ["presets", "show", "quickstart"],
        ["presets", "copy", "quickstart", "mine.yaml"],
        ["train", "--preset", "nope"],
        ["train", "--task", "nope"],
        ["train", "--set", "nope=1"],
        ["presets", "list", "--json"],
    ]
    finished = run(json.dumps(each), cwd=tmp_path, code=EACH)
    said = [line for line in finished.stderr.splitlines() if line.startswith("LOADED")]
    assert said == [" ".join(["LOADED", *args]) for args in each]


def test_help_imports_neither_pydantic_nor_rich(tmp_path):
    code = LIGHT.replace('("torch", ', '("torch", "pydantic", "yaml", "rich.console", ')
    assert run("--help", cwd=tmp_path, code=code).stderr.splitlines()[-1] == "LOADED"


@pytest.mark.parametrize("args", [[], ["--help"], ["-h"], ["presets"], ["train", "--help"]])
def test_help_is_on_stdout_and_exits_0(command, args):
    finished = command(*args)
    assert finished.code == 0
    assert finished.stdout.startswith("Usage: flowmbpo")
    assert finished.stderr == ""


def test_every_command_of_the_contract_is_there(command):
    listed = command("--help").stdout.partition("Commands:")[2]
    assert {line.split()[0] for line in listed.splitlines() if line.startswith("  ") and line[2:3].isalpha()} >= {
        "train",
        "eval",
        "presets",
        "parity",
        "doctor",
        "version",
    }
