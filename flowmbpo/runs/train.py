"""One training run: environment, agent, trainer, evaluation, checkpoints and metrics put together."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from flowmbpo.config.experiment import ExperimentConfig
from flowmbpo.config.load import to_yaml
from flowmbpo.diagnostics.parity import LARGEST_GAP_PERCENT, parity, reference_config
from flowmbpo.envs.make import make_env
from flowmbpo.envs.spec import EnvSpec
from flowmbpo.run_directory import RunDirectory, default_path
from flowmbpo.runs.build import env_name, env_spec, resolve_device, set_up_compute
from flowmbpo.runs.interrupts import stop_on_signals
from flowmbpo.runs.resume import load_for_resume, resume_target
from flowmbpo.runs.session import TrainingSession

log = logging.getLogger("flowmbpo")
log.setLevel(logging.INFO)


@dataclass(frozen=True)
class TrainOutcome:
    """What `train --json` prints. `final_*` are of the latest weights on fresh seeds, never a best."""

    run_dir: str
    status: Literal["done", "interrupted"]
    env_steps: int
    epochs: int
    final_return_mean: float | None
    final_return_std: float | None
    eval_episodes: int
    checkpoint: str
    wall_s: float
    cpu_s: float
    nonfinite: int

    def to_dict(self) -> dict[str, Any]:
        """The JSON document."""
        return asdict(self)


def train(
    config: ExperimentConfig,
    *,
    out: Path | None = None,
    resume: Path | Literal["auto"] | None = None,
    command: list[str] | None = None,
    console: bool = True,
) -> TrainOutcome:
    """Run (or go on with) the experiment; blocks until it is done, interrupted or failed.

    `resume` is a run directory, a checkpoint inside one, or "auto": the directory this config would
    have. Raises ConfigError, RunDirectoryError, CheckpointError, EnvironmentUnavailableError before
    anything is written, NonFiniteError and EnvironmentFailure while running.
    """
    spec = env_spec(config)
    device = resolve_device(config.device)
    set_up_compute(config)
    path = out.expanduser() if out is not None else default_path(Path(), config, env_name(config))
    checkpoint: Path | None = None
    if resume is not None:
        path, checkpoint = resume_target(path if resume == "auto" else resume, out)
    loaded = load_for_resume(checkpoint, config) if checkpoint is not None else None
    env = make_env(config.task)  # before the directory: an environment that cannot run leaves nothing behind
    try:
        run_dir = RunDirectory.create(path) if loaded is None else RunDirectory.open_existing(path)
        with run_dir:
            try:
                run_dir.update_status(
                    "running", command=command or [], device=str(device), env=env_name(config), seed=config.seed
                )
                run_dir.write_config(to_yaml(config))
                with logged_to(run_dir.logs / "train.log"):
                    log_parity(config, spec)
                    session = TrainingSession(config, env, run_dir, device, loaded, console=console)
                    with stop_on_signals() as stop, session:
                        return session.run(stop)
            except BaseException as error:
                run_dir.update_status("failed", error=f"{type(error).__name__}: {error}")
                raise
    finally:
        env.close()


@contextmanager
def logged_to(file: Path) -> Iterator[None]:
    """Whatever the package logs meanwhile also goes to `file`, with times."""
    handler = logging.FileHandler(file, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    log.addHandler(handler)
    try:
        yield
    finally:
        log.removeHandler(handler)
        handler.close()


def log_parity(config: ExperimentConfig, spec: EnvSpec) -> None:
    """Say how far model and actor are from the MLP and Gaussian of the written widths; warn past 2%."""
    gaps = parity(reference_config(config), config, spec, spec)
    text = ", ".join(
        f"{part.part} {part.b:,} parameters ({part.gap_percent:+.2f}% against the reference)"
        for part in (gaps.model, gaps.actor)
        if part.gap_percent is not None
    )
    log.log(
        logging.INFO if gaps.within else logging.WARNING,
        "%s; widths %s%s",
        text,
        gaps.widths_b,
        "" if gaps.within else f"; more than {LARGEST_GAP_PERCENT}%: not a comparison at equal size",
    )
