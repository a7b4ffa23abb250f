"""The sbatch wrappers: names and places, the seed of an array's task, a stop that is saved and queued again."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time

import pytest

WRAPPERS = {"pretrain": "pretrain", "finetune": "finetune", "specialize": "specialize", "policy": "train"}
SBATCH = """#!/usr/bin/env bash
printf 'RUN_ROOT=%s' "$RUN_ROOT" >> "$LOG"
printf ' %s' "$@" >> "$LOG"
echo >> "$LOG"
echo $((100 + $(wc -l < "$LOG")))
"""
SCONTROL = '#!/usr/bin/env bash\necho "scontrol $*" >> "$LOG"\n'
QUEUE_SECONDS = 240.0


@pytest.fixture
def job(scripts):
    """Environment of an array's task, with a scontrol that only notes its calls."""
    scripts.add("scontrol", SCONTROL)
    return {
        "SLURM_SUBMIT_DIR": str(scripts.folder),
        "SLURM_JOB_ID": "7",  # as of the task that has the array's own id
        "SLURM_ARRAY_JOB_ID": "7",
        "SLURM_JOB_NAME": "flowmbpo_stage-a_mini3_x",
        "SLURM_ARRAY_TASK_ID": "2",
        "RUN_ROOT": "outputs/stage-a/mini3/x",
    }


def wait_for(condition, seconds):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_wrapper_runs_its_command_with_the_task_id_as_seed(scripts, job, wrapper):
    options = ("--preset", "p", "--from", "a/seed{seed}")
    code, _, err = scripts.run(f"examples/slurm/{wrapper}.sbatch", *options, **job)
    assert code == 0, err
    assert scripts.calls == [
        "scontrol update JobId=7_2 JobName=flowmbpo_stage-a_mini3_x_s2",
        f"{WRAPPERS[wrapper]} --preset p --from a/seed2 --seed 2 --out outputs/stage-a/mini3/x/seed2",
    ]


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_wrapper_asks_for_a_warning_before_the_time_is_up(repository, wrapper):
    lines = (repository / "examples" / "slurm" / f"{wrapper}.sbatch").read_text().splitlines()
    asked = {line.removeprefix("#SBATCH ") for line in lines if line.startswith("#SBATCH ")}
    assert {"--signal=B:USR1@120", "--requeue", "--open-mode=append"} <= asked


def test_a_job_that_comes_back_keeps_its_name_and_resumes(scripts, job, record):
    record(scripts.folder / "outputs/stage-a/mini3/x/seed2", "interrupted", True)
    name = {"SLURM_JOB_NAME": "flowmbpo_stage-a_mini3_x_s2", "SLURM_RESTART_COUNT": "1"}
    assert scripts.run("examples/slurm/pretrain.sbatch", **{**job, **name})[0] == 0
    assert scripts.calls == [
        "scontrol update JobId=7_2 JobName=flowmbpo_stage-a_mini3_x_s2",
        "pretrain --seed 2 --out outputs/stage-a/mini3/x/seed2 --resume outputs/stage-a/mini3/x/seed2",
    ]


@pytest.mark.parametrize(("number", "requeued"), [(signal.SIGUSR1, True), (signal.SIGTERM, False)])
def test_a_stop_reaches_the_trainer_and_only_the_end_of_time_queues_it_again(scripts, job, number, requeued):
    process = scripts.start("examples/slurm/pretrain.sbatch", **job, INTERRUPTIBLE="1")
    try:
        wait_for(lambda: "ready" in scripts.calls, 30.0)
        process.send_signal(number)
        assert process.wait(30.0) == 75
    finally:
        process.kill()
        process.communicate()
    assert ("scontrol requeue 7_2" in scripts.calls) is requeued
    assert '"interrupted"' in (scripts.folder / "outputs/stage-a/mini3/x/seed2/run.json").read_text()


def test_setup_is_sourced_before_the_command(scripts, job):
    (scripts.programs / "flowmbpo").rename(scripts.programs / "elsewhere")
    (scripts.folder / "site.sh").write_text(f"export FLOWMBPO={scripts.programs}/elsewhere\n")
    assert scripts.run("examples/slurm/pretrain.sbatch", **job, SETUP="site.sh")[0] == 0
    assert scripts.calls[-1].startswith("pretrain --seed 2")


def test_outside_an_array_the_wrapper_says_what_is_missing(scripts, job):
    del job["SLURM_ARRAY_TASK_ID"]
    code, _, err = scripts.run("examples/slurm/pretrain.sbatch", **job)
    assert code != 0 and "--array=0-2" in err and scripts.calls == []


def test_submit_names_job_run_and_logs(scripts):
    scripts.add("sbatch", SBATCH)
    words = ("pretrain", "stage-a", "mt30", "c", "0-2", "--time=1", "--", "--preset", "stage-a-baseline")
    code, out, _ = scripts.run("examples/slurm/submit.sh", *words)
    assert (code, out) == (0, "101\n")
    assert scripts.calls == [
        "RUN_ROOT=outputs/stage-a/mt30/c --parsable --job-name=flowmbpo_stage-a_mt30_c --array=0-2"
        " --output=logs/slurm/stage-a/mt30/train_c_seed%a_%j.out --error=logs/slurm/stage-a/mt30/train_c_seed%a_%j.err"
        " --time=1 examples/slurm/pretrain.sbatch --preset stage-a-baseline"
    ]
    assert (scripts.folder / "logs/slurm/stage-a/mt30").is_dir()


def test_submit_refuses_what_it_cannot_submit(scripts):
    scripts.add("sbatch", SBATCH)
    assert scripts.run("examples/slurm/submit.sh", "evaluate", "p", "e", "c", "0")[0] == 2
    code, _, err = scripts.run("examples/slurm/submit.sh", "pretrain")
    assert code == 2 and "WRAPPER PHASE ENV CONFIG SEEDS" in err
    assert scripts.calls == []


def test_abc_chains_the_stages(scripts):
    scripts.add("sbatch", SBATCH)
    variables = {"FAMILY": "mini3", "ENV": "mini3", "ARM": "flowwm", "SEEDS": "0,1", "DATA": "d", "TASK": "cheetah-run"}
    code, out, err = scripts.run("examples/slurm/submit_abc.sh", "--mem=4G", **variables)
    assert code == 0, err
    assert out == "A 101   B 102   C 103\n"
    a, b, c = scripts.calls
    assert "--dependency" not in a and "--preset mini3-a-flowwm --data d" in a
    assert "--dependency=afterok:101 --kill-on-invalid-dep=yes" in b and "--dependency=afterok:102" in c
    assert "--from outputs/stage-a/mini3/mini3-a-flowwm/seed{seed}" in b
    b_root = "outputs/stage-b/mini3/mini3-b-flowwm+from-mini3-a-flowwm"
    assert f"RUN_ROOT={b_root} " in b and f"--from {b_root}/seed{{seed}} --task cheetah-run" in c
    assert "RUN_ROOT=outputs/stage-c/cheetah-run/mini3-c-flowwm+from-mini3-b-flowwm+from-mini3-a-flowwm " in c
    assert all("--array=0,1" in call and "--mem=4G" in call for call in scripts.calls)


def test_abc_needs_a_dataset(scripts):
    scripts.add("sbatch", SBATCH)
    code, _, err = scripts.run("examples/slurm/submit_abc.sh")
    assert code != 0 and "the dataset of stage A" in err and scripts.calls == []


@pytest.mark.slurm
@pytest.mark.slow
def test_an_array_is_stopped_queued_again_and_resumed(scripts, tmp_path):
    """A run of minutes under a limit of two: two tasks, each with a log and a run of its own."""
    assert shutil.which("sbatch") is not None, "no sbatch here"
    command = shutil.which("flowmbpo", path=os.path.dirname(sys.executable))
    assert command is not None, "the command is not installed beside this Python"
    environment = {**os.environ, "FLOWMBPO": command}

    def slurm(*words):
        done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
        return done.stdout

    (tmp_path / "fast.yaml").write_text(
        "extends: quickstart\nname: fast\ntraining: {epochs: 100000}\nevaluation: {every: 0, episodes: 1}\n"
    )
    limits = ("--gres=none", "--cpus-per-task=1", "--mem=1500", "--time=2", "--signal=B:USR1@60")
    submit = ("bash", "examples/slurm/submit.sh", "policy", "quickstart", "toy", "fast", "0-1", *limits, "--")
    number = slurm(*submit, "--preset", "fast.yaml").strip()
    runs = [tmp_path / f"outputs/quickstart/toy/fast/seed{seed}" for seed in (0, 1)]

    def interrupted(run):
        return (run / "run.json").exists() and '"status": "interrupted"' in (run / "run.json").read_text()

    try:
        wait_for(lambda: all(map(interrupted, runs)), QUEUE_SECONDS)
        wait_for(lambda: "R" not in slurm("squeue", "--noheader", "--array", "--format=%t", f"--jobs={number}"), 60.0)
        names = slurm("squeue", "--noheader", "--array", "--format=%j", f"--jobs={number}").split()
        assert sorted(names) == ["flowmbpo_quickstart_toy_fast_s0", "flowmbpo_quickstart_toy_fast_s1"]
        for seed in (0, 1):
            slurm("scontrol", "update", f"jobid={number}_{seed}", "StartTime=now")
        wait_for(lambda: all('"resumed_from": [\n' in (run / "run.json").read_text() for run in runs), QUEUE_SECONDS)
    finally:
        subprocess.run(["scancel", number], check=False)
    logs = sorted(path.name for path in (tmp_path / "logs/slurm/quickstart/toy").glob("*.out"))
    assert [name.rsplit("_", 1)[0] for name in logs] == ["train_fast_seed0", "train_fast_seed1"]
