"""`run_or_resume.sh` starts, resumes or leaves alone, whichever a run needs."""

from __future__ import annotations

import fcntl

import pytest

SCRIPT = "examples/run_or_resume.sh"
COMMAND = ("pretrain", "--preset", "mini3-a-residual")


def test_a_new_run_is_started(scripts):
    assert scripts.run(SCRIPT, "run", *COMMAND)[0] == 0
    assert scripts.calls == ["pretrain --preset mini3-a-residual --out run"]


@pytest.mark.parametrize("status", ["interrupted", "failed", "running"])
def test_a_run_with_a_checkpoint_is_resumed(scripts, record, status):
    record(scripts.folder / "run", status, True)
    assert scripts.run(SCRIPT, "run", *COMMAND)[0] == 0
    assert scripts.calls == ["pretrain --preset mini3-a-residual --out run --resume run"]


def test_a_finished_run_is_left_alone(scripts, record):
    record(scripts.folder / "run", "done", True)
    code, out, _ = scripts.run(SCRIPT, "run", *COMMAND)
    assert (code, out.strip(), scripts.calls) == (0, "done already: run", [])


def test_a_run_without_a_checkpoint_is_moved_aside_and_started_again(scripts, record):
    record(scripts.folder / "run", "failed", False)
    (scripts.folder / "run" / "metrics.jsonl").write_text("kept")
    assert scripts.run(SCRIPT, "run", *COMMAND)[0] == 0
    assert scripts.calls == ["pretrain --preset mini3-a-residual --out run"]
    aside = list(scripts.folder.glob("run.no-checkpoint-*"))
    assert [(folder / "metrics.jsonl").read_text() for folder in aside] == ["kept"]


def test_a_run_of_another_process_is_not_touched(scripts, record):
    record(scripts.folder / "run", "running", False)
    with open(scripts.folder / "run" / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        code, _, err = scripts.run(SCRIPT, "run", *COMMAND)
    assert code == 1 and "another process" in err
    assert scripts.calls == [] and not list(scripts.folder.glob("run.no-checkpoint-*"))


def test_the_command_s_exit_code_is_passed_on(scripts):
    scripts.add("flowmbpo", "#!/bin/sh\nexit 3\n")
    assert scripts.run(SCRIPT, "run", *COMMAND)[0] == 3
    assert scripts.run(SCRIPT, "run")[0] == 2
