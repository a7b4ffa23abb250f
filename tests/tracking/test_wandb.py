"""W&B names, and the promise that offline means no network attempt at all."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

from flowmbpo.config.actors import FlowActorConfig
from flowmbpo.config.dynamics import FlowDynamicsConfig, NeuralODEDynamicsConfig, ResidualDynamicsConfig
from flowmbpo.config.experiment import ExperimentConfig
from flowmbpo.config.model import ModelConfig
from flowmbpo.errors import ConfigError
from flowmbpo.runs.directory import RunDirectory
from flowmbpo.runs.sinks import make_sinks
from flowmbpo.tracking.wandb import WandbSink, choose_mode, wandb_group, wandb_name

OFFLINE = """
    import os, socket, sys
    attempts = []
    def refuse(self, address, *rest):
        if self.family != socket.AF_UNIX and address[0] not in ("127.0.0.1", "::1", "localhost"):
            attempts.append(address)
            raise OSError(f"network attempt: {address}")
        return real(self, address, *rest)
    def refuse_lookup(host, *rest, **options):
        if host not in ("127.0.0.1", "::1", "localhost", None):
            attempts.append(host)
            raise OSError(f"lookup: {host}")
        return real_lookup(host, *rest, **options)
    real, socket.socket.connect = socket.socket.connect, refuse
    real_lookup, socket.getaddrinfo = socket.getaddrinfo, refuse_lookup

    from pathlib import Path
    from flowmbpo.config.experiment import ExperimentConfig
    from flowmbpo.tracking.wandb import WandbSink
    config = ExperimentConfig(name="quick", phase="quickstart", seed=1)
    sink = WandbSink(config, "toy", "0a1b2c3d", Path(sys.argv[1]))
    assert sink.mode == "offline" and "wandb" in sys.modules
    for epoch in (1, 2):
        sink.log({"epoch": epoch, "agent_steps": 10 * epoch, "loss/actor": float("nan"), "eval/return_mean": 1.5})
    sink.close("done")
    assert os.environ["WANDB_ERROR_REPORTING"] == "false"
    assert not attempts, attempts
"""


def experiment(**changes: object) -> ExperimentConfig:
    return ExperimentConfig.model_validate({"name": "full", "phase": "phase2", "seed": 42, **changes})


def test_group_is_phase_task_and_config() -> None:
    assert wandb_group(experiment(), "dflex-ant") == "phase2_dflex-ant_full"


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, "full_seed42_H16"),
        ({"model": ModelConfig(dynamics=ResidualDynamicsConfig())}, "full_seed42_H16"),
        ({"model": ModelConfig(dynamics=FlowDynamicsConfig(substeps=4))}, "full_seed42_H16_K4"),
        ({"model": ModelConfig(dynamics=NeuralODEDynamicsConfig(substeps=2))}, "full_seed42_H16_K2"),
        ({"actor": FlowActorConfig(substeps=3)}, "full_seed42_H16_Kpol3"),
        (
            {
                "model": ModelConfig(dynamics=FlowDynamicsConfig()),
                "actor": FlowActorConfig(),
                "training": {"horizon": 8},
            },
            "full_seed42_H8_K4_Kpol2",
        ),
    ],
)
def test_name_leaves_out_what_the_config_does_not_have(changes: dict[str, object], expected: str) -> None:
    assert wandb_name(experiment(**changes)) == expected


@pytest.mark.parametrize(
    ("variables", "mode"),
    [
        ({}, "offline"),
        ({"WANDB_API_KEY": "x"}, "online"),
        ({"WANDB_API_KEY": "x", "WANDB_MODE": "offline"}, "offline"),
        ({"WANDB_MODE": "online"}, "online"),
    ],
)
def test_mode_is_offline_unless_key_or_user_say_otherwise(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], mode: str
) -> None:
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", "/nonexistent/netrc")
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert choose_mode() == mode


def test_offline_run_makes_no_network_attempt_and_prints_nothing(tmp_path: Path) -> None:
    """Python's own sockets refuse; W&B's service process would have to go through the proxy, which listens here."""
    settings = {name: value for name, value in os.environ.items() if not name.startswith("WANDB")}
    with socket.create_server(("127.0.0.1", 0)) as proxy:
        proxy.setblocking(False)
        address = f"http://127.0.0.1:{proxy.getsockname()[1]}"
        settings |= {"https_proxy": address, "http_proxy": address, "no_proxy": "127.0.0.1,localhost"}
        command = [sys.executable, "-c", textwrap.dedent(OFFLINE), str(tmp_path)]
        done = subprocess.run(command, capture_output=True, text=True, env=settings, timeout=120)
        with pytest.raises(BlockingIOError):  # nobody has called
            proxy.accept()
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    (run,) = (tmp_path / "wandb").glob("offline-run-*-0a1b2c3d")
    assert (run / "run-0a1b2c3d.wandb").stat().st_size > 0


def test_names_are_read_without_importing_wandb() -> None:
    program = "import sys, flowmbpo.tracking.wandb; sys.exit('wandb' in sys.modules or 'torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


class StandInRun:
    def __init__(self) -> None:
        self.rows: list[tuple[dict[str, float], int]] = []
        self.exit_code: int | None = None

    def define_metric(self, name: str, step_metric: str) -> None:
        self.axis = (name, step_metric)

    def log(self, row: dict[str, float], step: int) -> None:
        self.rows.append((row, step))

    def finish(self, exit_code: int) -> None:
        self.exit_code = exit_code


class StandInPackage:
    """wandb as far as the sink uses it, without its service process."""

    class Error(Exception):
        pass

    def __init__(self, refuses: bool = False) -> None:
        self.refuses, self.run, self.options = refuses, StandInRun(), dict[str, Any]()

    def Settings(self, **options: Any) -> dict[str, Any]:
        return options

    def init(self, **options: Any) -> StandInRun:
        if self.refuses:
            raise self.Error("invalid key")
        self.options = options
        return self.run


@pytest.mark.parametrize(("status", "exit_code"), [("done", 0), ("interrupted", 75), ("failed", 1)])
def test_rows_reach_the_run_and_status_its_exit_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, status: str, exit_code: int
) -> None:
    package = StandInPackage()
    monkeypatch.setitem(sys.modules, "wandb", package)  # type: ignore[arg-type]
    sink = WandbSink(experiment(), "toy", "0a1b2c3d", tmp_path)
    sink.log({"epoch": 4, "agent_steps": 8, "loss/actor": float("inf"), "note": "x"})
    sink.close(status)
    assert package.run.rows == [({"epoch": 4, "agent_steps": 8}, 4)]
    assert package.run.exit_code == exit_code
    asked = {key: package.options[key] for key in ("project", "group", "name", "id", "resume")}
    assert asked == {
        "project": "flow-mbpo-pwm",
        "group": "phase2_toy_full",
        "name": "full_seed42_H16",
        "id": "0a1b2c3d",
        "resume": "allow",
    }


def test_refusal_of_wandb_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", StandInPackage(refuses=True))  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"invalid key.*WANDB_MODE=offline.*--track none"):
        WandbSink(experiment(), "toy", "0a1b2c3d", tmp_path)


def test_key_in_the_environment_is_written_nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package, key = StandInPackage(), "not-a-real-key-0123456789"
    monkeypatch.setitem(sys.modules, "wandb", package)  # type: ignore[arg-type]
    monkeypatch.setenv("WANDB_API_KEY", key)
    config = experiment(tracking={"sinks": ["wandb"]})
    with RunDirectory.create(tmp_path / "run") as run:
        make_sinks(config, run, "toy", console=False).close("done")
    assert key not in repr(package.options)
    assert not [file for file in (tmp_path / "run").rglob("*") if file.is_file() and key in file.read_text()]
