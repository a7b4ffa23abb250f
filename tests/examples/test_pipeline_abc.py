"""`pipeline_abc.sh`: the right commands in the right order, nothing twice; and once for real."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys

import pytest

SCRIPT = "examples/pipeline_abc.sh"
STEPS = ["train", "train", "train", "data collect", "data verify", "data inspect", "pretrain", "finetune", "specialize"]


def steps(calls):
    """The commands without their options."""
    words = [call.split() for call in calls]
    return [" ".join(call[: 2 if call[0] == "data" else 1]) for call in words]


def option(call, name):
    words = call.split()
    return words[words.index(name) + 1]


def test_each_stage_starts_from_the_one_before(scripts):
    code, _, err = scripts.run(SCRIPT, OUT="o", ARM="fullflow", TASK="cheetah-run", SEED="4")
    assert code == 0, err
    assert steps(scripts.calls) == [*STEPS, "eval", "eval"]
    collect, (pretrain, finetune, specialize) = scripts.calls[3], scripts.calls[6:9]
    assert collect.split()[2] == "o/seed4/data" == option(pretrain, "--data")
    for task in ("reacher-easy", "walker-stand", "cheetah-run"):
        assert f"--policy o/seed4/collector-{task}:{task}" in collect
    assert (option(finetune, "--from"), option(specialize, "--from")) == (
        "o/seed4/fullflow/a",
        "o/seed4/fullflow/b",
    )
    assert [option(call, "--preset") for call in (pretrain, finetune, specialize)] == [
        f"mini3-{stage}-fullflow" for stage in "abc"
    ]
    assert option(specialize, "--task") == "cheetah-run"
    assert {option(call, "--seed") for call in scripts.calls[:4] + scripts.calls[6:9]} == {"4"}
    assert not any("training.epochs" in call for call in scripts.calls[6:9])


def test_finished_steps_are_not_repeated(scripts):
    assert scripts.run(SCRIPT, OUT="o")[0] == 0
    first = len(scripts.calls)
    assert scripts.run(SCRIPT, OUT="o", TASK="cheetah-run")[0] == 0
    assert steps(scripts.calls[first:]) == ["data verify", "data inspect", "specialize", "eval", "eval"]


def test_another_arm_shares_the_data_and_another_seed_shares_nothing(scripts):
    assert scripts.run(SCRIPT, ARM="residual")[0] == 0
    first = len(scripts.calls)
    assert scripts.run(SCRIPT, ARM="flowwm")[0] == 0
    second = len(scripts.calls)
    assert scripts.run(SCRIPT, ARM="flowwm", SEED="1")[0] == 0
    assert steps(scripts.calls[first:second]) == [*STEPS[4:], "eval", "eval"]
    assert option(scripts.calls[first + 2], "--preset") == "mini3-a-flowwm"
    assert steps(scripts.calls[second:]) == [*STEPS, "eval", "eval"]
    trained = [option(call, "--out") for call in scripts.calls if "--out" in call]
    assert len(set(trained)) == len(trained) == 6 + 3 + 6


@pytest.mark.parametrize("task", ["walker-stand", "cheetah-run"])
def test_the_last_line_repeats_what_was_set_for_another_task(scripts, task):
    (scripts.programs / "flowmbpo").rename(scripts.programs / "elsewhere")
    given = {"FLOWMBPO": str(scripts.programs / "elsewhere"), "QUICK": "1", "ARM": "flowwm", "SEED": "3", "OUT": "o p"}
    code, out, err = scripts.run(SCRIPT, **given, A_EPOCHS="7", TASK=task)
    assert code == 0, err
    (line,) = [line for line in out.splitlines() if line.startswith("Another task:")]
    first = len(scripts.calls)
    command = line.removeprefix("Another task:").partition("   (")[0].strip()
    code, _, err = scripts.run("-c", command)
    assert code == 0, err
    again = scripts.calls[first:]
    assert steps(again) == ["data verify", "data inspect", "specialize", "eval", "eval"]
    assert option(again[2], "--task") != task
    assert "--out o p/quick/seed3/flowwm/c-" in again[2]


def test_without_the_command_on_the_path_the_repository_s_own_is_taken(scripts):
    (scripts.folder / ".venv" / "bin").mkdir(parents=True)
    (scripts.folder / "flowmbpo").mkdir()  # the package, which is no command
    (scripts.programs / "flowmbpo").rename(scripts.folder / ".venv" / "bin" / "flowmbpo")
    code, _, err = scripts.run(SCRIPT)
    assert code == 0, err
    assert steps(scripts.calls) == [*STEPS, "eval", "eval"]


@pytest.mark.parametrize("script", [SCRIPT, "examples/run_or_resume.sh", "examples/quickstart.sh"])
def test_without_any_command_it_says_what_to_do(scripts, script):
    (scripts.folder / "flowmbpo").mkdir()
    (scripts.programs / "flowmbpo").unlink()
    code, _, err = scripts.run(script, "run", "train")
    assert code == 127
    assert "activate the .venv" in err and "set FLOWMBPO" in err


def test_a_failed_step_ends_it(scripts):
    stand_in = (scripts.programs / "flowmbpo").read_text()
    scripts.add("flowmbpo", stand_in.replace("finished() {", '[ "$1" != finetune ] || exit 1\nfinished() {'))
    assert scripts.run(SCRIPT, OUT="o")[0] == 1
    assert steps(scripts.calls)[-1] == "finetune"


@pytest.mark.parametrize(("given", "folder"), [({}, "outputs/pipeline-abc"), ({"OUT": "o"}, "o")])
def test_quick_shortens_every_step_and_has_a_folder_of_its_own(scripts, given, folder):
    assert scripts.run(SCRIPT, QUICK="1", **given)[0] == 0
    trained = [call for call in scripts.calls if "--out" in call]
    assert len(trained) == 6
    assert all("training.epochs=3" in call and option(call, "--out").startswith(f"{folder}/quick/") for call in trained)


@pytest.mark.slow
def test_the_whole_pipeline_runs(repository, tmp_path):
    command = shutil.which("flowmbpo", path=os.path.dirname(sys.executable))
    assert command is not None, "the command is not installed beside this Python"
    sizes = {"COLLECTOR_EPOCHS": "1", "A_EPOCHS": "1", "B_EPOCHS": "1", "C_EPOCHS": "1", "EVAL_EPISODES": "3"}
    environment = {**os.environ, **sizes, "FLOWMBPO": command, "OUT": str(tmp_path / "o"), "QUICK": "1"}
    script = str(repository / SCRIPT)
    done = subprocess.run(["bash", script], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    last = tmp_path / "o/quick/seed0/residual/c-walker-stand"
    outcome = json.loads((last / "run.json").read_text())["outcome"]
    assert [run["phase"] for run in outcome["lineage"]] == ["stage-a", "stage-b", "stage-c"]
    assert outcome["lineage"][0]["data_transitions"] == 9 * 2 * 500  # 3 policies in each of 3 tasks, 2 episodes each
    assert outcome["start"] is not None
    taken = json.loads((last / "initial.json").read_text())["transfer"]
    assert taken["loaded"] == taken["total"]
