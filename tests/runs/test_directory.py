"""A run directory belongs to one process, and nothing in it is silently overwritten."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from flowmbpo.config.experiment import ExperimentConfig
from flowmbpo.errors import RunDirectoryError, StorageError
from flowmbpo.runs.directory import RunDirectory, default_path, read_run

HOLDER = """
    import sys
    from pathlib import Path
    from flowmbpo.runs.directory import RunDirectory
    run = RunDirectory.create(Path(sys.argv[1]))
    print("held", flush=True)
    sys.stdin.readline()
"""


def start_holder(path: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(HOLDER), str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    return process


def test_default_path_follows_phase_task_config_and_seed() -> None:
    config = ExperimentConfig(name="quickstart+0a1b2c", phase="quickstart", seed=4)
    expected = Path("/x/outputs/quickstart/toy-pendulum-swingup/quickstart+0a1b2c/seed4")
    assert default_path(Path("/x"), config, "toy-pendulum-swingup") == expected


def test_new_run_records_its_provenance(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "1234")
    with RunDirectory.create(tmp_path / "a" / "run") as run:
        record = read_run(run.path)
        assert record["status"] == "running" and record["ended"] is None
        assert record["host"] == socket.gethostname()
        assert record["slurm"] == {"job_id": "1234"}
        assert record["packages"]["flowmbpo"] and record["packages"]["torch"]
        assert record["command"] and record["resumed_from"] == []
        assert run.checkpoints.is_dir() and run.logs.is_dir()
        assert (run.path / "run_id.txt").read_text().strip() == run.run_id == record["run_id"]


def test_status_and_fields_are_updated_in_place(tmp_path: Path) -> None:
    with RunDirectory.create(tmp_path / "run") as run:
        run.update_status("running", device="cpu", threads=1)
        run.update_status("done", final_return_mean=12.5)
        record = read_run(run.path)
    assert (record["status"], record["device"], record["final_return_mean"]) == ("done", "cpu", 12.5)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", record["ended"])


def test_second_run_in_the_same_directory_is_refused(tmp_path: Path) -> None:
    RunDirectory.create(tmp_path / "run").close()
    before = (tmp_path / "run" / "run.json").read_bytes()
    with pytest.raises(RunDirectoryError, match=r"already holds a run.*--resume.*--out"):
        RunDirectory.create(tmp_path / "run")
    assert (tmp_path / "run" / "run.json").read_bytes() == before


def test_folder_with_other_files_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(RunDirectoryError, match=r"not empty and holds no run \(found thesis\.tex\)"):
        RunDirectory.create(tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["thesis.tex"]


def test_file_in_the_place_of_a_run_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("x")
    with pytest.raises(RunDirectoryError, match=r"is a file.*--out"):
        RunDirectory.create(tmp_path / "run")


def test_empty_folder_and_leftovers_of_a_dead_claim_can_be_claimed(tmp_path: Path) -> None:
    (tmp_path / ".lock").write_text("process 1 on host gone\n")
    (tmp_path / ".run.json.1.partial").write_text("{")
    with RunDirectory.create(tmp_path) as run:
        assert read_run(run.path)["status"] == "running"
    assert not (tmp_path / ".run.json.1.partial").exists()


def test_directory_held_by_another_process_is_refused_by_its_pid_and_host(tmp_path: Path) -> None:
    path = tmp_path / "run"
    holder = start_holder(path)
    try:
        with pytest.raises(RunDirectoryError, match=rf"process {holder.pid} on host {socket.gethostname()}"):
            RunDirectory.open_existing(path)
        with pytest.raises(RunDirectoryError, match="already holds a run"):
            RunDirectory.create(path)
    finally:
        os.kill(holder.pid, signal.SIGKILL)
        holder.communicate()
    with RunDirectory.open_existing(path) as run:  # a killed holder holds nothing
        run.mark_resumed("checkpoints/latest.pt", epoch=7)
        resumed = read_run(path)["resumed_from"]
    assert [(r["checkpoint"], r["epoch"], r["previous_status"]) for r in resumed] == [
        ("checkpoints/latest.pt", 7, "running")
    ]


def test_of_many_processes_claiming_one_directory_exactly_one_gets_it(tmp_path: Path) -> None:
    program = """
        import sys
        from pathlib import Path
        from flowmbpo.errors import RunDirectoryError
        from flowmbpo.runs.directory import RunDirectory
        print("ready", flush=True)
        sys.stdin.readline()
        try:
            RunDirectory.create(Path(sys.argv[1]))
            print("mine", flush=True)
            sys.stdin.readline()
        except RunDirectoryError as error:
            print("refused", flush=True)
    """
    command = [sys.executable, "-c", textwrap.dedent(program), str(tmp_path / "run")]
    claims = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    for claim in claims:
        assert claim.stdout is not None and claim.stdout.readline() == "ready\n"
    for claim in claims:
        assert claim.stdin is not None
        claim.stdin.write("go\n")
        claim.stdin.flush()
    answers = [claim.stdout.readline().strip() for claim in claims if claim.stdout is not None]
    for claim in claims:
        claim.communicate("done\n")
    assert sorted(answers) == ["mine", "refused", "refused", "refused"]


def test_forked_worker_that_outlives_its_parent_does_not_hold_the_run(tmp_path: Path) -> None:
    run = RunDirectory.create(tmp_path / "run")
    started, start = os.pipe()
    end, stay = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(stay)
        os.write(start, b"1")
        os.read(end, 1)  # live until the parent closes its end
        os._exit(0)
    try:
        os.read(started, 1)
        os.close(run._lock or -1)  # what the kernel does when the parent is killed
        run._lock = None
        with RunDirectory.open_existing(tmp_path / "run") as taken:
            assert taken.path == tmp_path / "run"
        assert os.waitpid(child, os.WNOHANG) == (0, 0)  # the worker was alive all the while
    finally:
        os.close(stay)
        os.waitpid(child, 0)


def test_opening_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunDirectoryError, match=r"holds no run \(no run\.json\)"):
        RunDirectory.open_existing(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_unreadable_record_is_an_error_that_names_it(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(RunDirectoryError, match=r"run\.json: cannot be read"):
        read_run(tmp_path)
    (tmp_path / "run.json").write_text("[]")
    with pytest.raises(RunDirectoryError, match="not a JSON object"):
        read_run(tmp_path)


@pytest.mark.parametrize("record", ["{}", '{"schema_version": 1}'])
def test_record_of_another_schema_version_is_refused(tmp_path: Path, record: str) -> None:
    (tmp_path / "run.json").write_text(record)
    with pytest.raises(RunDirectoryError, match=r"this flowmbpo reads version 2\. Use the flowmbpo that wrote it"):
        RunDirectory.open_existing(tmp_path)


def test_changed_config_keeps_the_earlier_one(tmp_path: Path) -> None:
    with RunDirectory.create(tmp_path / "run") as run:
        for text in ("epochs: 1\n", "epochs: 1\n", "epochs: 2\n", "epochs: 3\n"):
            run.write_config(text)
        assert run.config.read_text() == "epochs: 3\n"
        assert (run.logs / "config-1.yaml").read_text() == "epochs: 1\n"
        assert (run.logs / "config-2.yaml").read_text() == "epochs: 2\n"


def test_json_files_are_written_whole(tmp_path: Path) -> None:
    with RunDirectory.create(tmp_path / "run") as run:
        path = run.write_json_atomic("summary.json", {"a": [1, 2]})
        assert json.loads(path.read_text()) == {"a": [1, 2]}
        with pytest.raises(ValueError, match="not JSON compliant"):
            run.write_json_atomic("summary.json", {"a": float("nan")})
        assert json.loads(path.read_text()) == {"a": [1, 2]}


def test_run_directories_are_handled_without_importing_torch() -> None:
    program = "import sys, flowmbpo.runs.directory; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_directory_below_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for path in (tmp_path / "file" / "run", tmp_path / "file" / "deeper" / "run"):
        with pytest.raises(RunDirectoryError, match=r"run: lies below a file.*--out"):
            RunDirectory.create(path)


def test_place_where_no_folder_can_be_made_is_a_storage_error() -> None:
    with pytest.raises(StorageError, match=r"/proc/flowmbpo-run: cannot be written"):
        RunDirectory.create(Path("/proc/flowmbpo-run"))
