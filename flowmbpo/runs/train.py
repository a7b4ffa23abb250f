"""One training run: environment, agent, trainer, evaluation, checkpoints and metrics put together."""

from __future__ import annotations

import logging
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import torch

from flowmbpo.checkpoints.load import Loaded
from flowmbpo.config.experiment import ExperimentConfig
from flowmbpo.envs.resolve import backend_notices
from flowmbpo.errors import Interrupted, StorageError
from flowmbpo.parity.comparison import LARGEST_GAP_PERCENT, parity, reference_config
from flowmbpo.parity.cost import estimate_cost
from flowmbpo.presets.load import to_yaml
from flowmbpo.runs.build import env_name, env_spec, pinned, resolve_device, set_up_compute
from flowmbpo.runs.directory import RunDirectory, default_path
from flowmbpo.runs.dry_run import total_env_steps
from flowmbpo.runs.interrupts import stop_on_signals
from flowmbpo.runs.offline import open_dataset
from flowmbpo.runs.outcome import TrainOutcome
from flowmbpo.runs.preconditions import check_config
from flowmbpo.runs.resume import has_begun, load_for_resume, restore, resume_target
from flowmbpo.runs.session import TrainingSession
from flowmbpo.runs.trainers import Prepared, prepare
from flowmbpo.spec import EnvSpec
from flowmbpo.stages.initial import load_initial
from flowmbpo.stages.lineage import Origins
from flowmbpo.stages.transfer.report import TransferReport

log = logging.getLogger("flowmbpo")
log.setLevel(logging.INFO)


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
    anything is written, NonFiniteError, EnvironmentFailure, StorageError and Interrupted (stopped at
    once by a second Ctrl-C) while running.
    """
    config = pinned(config)
    spec = env_spec(config)
    check_config(config, spec)
    device = resolve_device(config.device)
    set_up_compute(config)
    path = out.expanduser() if out is not None else default_path(Path(), config, env_name(config))
    checkpoint: Path | None = None
    if resume is not None:
        path, checkpoint = resume_target(path if resume == "auto" else resume, out)
    loaded, config = load_for_resume(checkpoint, config) if checkpoint is not None else (None, config)
    # Before the directory is taken: what cannot be built or restored leaves it as it was.
    config, prepared = _prepared(config, device, path, loaded)
    trainer, origins = prepared.trainer, prepared.origins
    try:
        if loaded is not None:
            restore(trainer, loaded)
            origins = Origins.restored(config, loaded.payload)
        run_dir = RunDirectory.create(path) if loaded is None else RunDirectory.open_existing(path)
        with run_dir, failure_recorded(run_dir):
            if loaded is not None:
                run_dir.mark_resumed(loaded.path.name, trainer.epoch)
            facts = {"command": command or [], "device": str(device), "env": env_name(config), "seed": config.seed}
            run_dir.update_status("running", **facts, error=None, outcome=None)
            run_dir.write_config(to_yaml(config))
            with logged_to(run_dir.logs / "train.log", warn=console), stop_on_signals() as stop:
                log_backend(config)
                log_parity(config, spec)
                log_high_cost(config, spec)
                if prepared.report is not None and loaded is None:
                    run_dir.write_json_atomic("initial.json", origins.initial)
                    log_transfer(origins, prepared.report, console=console)
                with TrainingSession(config, trainer, run_dir, loaded, origins, console=console) as session:
                    return session.run(stop)
    finally:
        prepared.close()


def _prepared(
    config: ExperimentConfig, device: torch.device, path: Path, loaded: Loaded | None
) -> tuple[ExperimentConfig, Prepared]:
    """The config as the run stores it, and its trainer before anything is restored from `loaded`."""
    initial = None
    if config.initial is not None and (loaded is None or not has_begun(loaded)):
        initial = load_initial(config.initial)
        config = initial.adopt(config)
    return config, prepare(config, device, path, initial, open_dataset(config))


def log_transfer(origins: Origins, report: TransferReport, *, console: bool) -> None:
    """Say what was taken over from the initial checkpoint, what is new and what was dropped."""
    assert origins.initial is not None
    began = f"starts from {origins.initial['checkpoint']} (SHA-256 {origins.initial['sha256']})"
    log.info("%s", began)
    if console:
        print(began, file=sys.stderr)
    kept = {key: origins.initial[key] for key in ("optimisers", "replay", "planner")}
    for line in [*report.lines(), *(f"{part}: {what}" for part, what in kept.items() if what != "none")]:
        log.info("%s", line)
        if console:
            print(f"  {line}", file=sys.stderr)


@contextmanager
def failure_recorded(run_dir: RunDirectory) -> Iterator[None]:
    """Whatever ends the run inside is written to its run.json, where the disk lets it, and raised again."""
    try:
        yield
    except KeyboardInterrupt as error:
        if not (run_dir.checkpoints / "latest.pt").is_file():
            _record(run_dir, "failed", "stopped at once, before the first checkpoint")
            raise
        _record(run_dir, "interrupted", "stopped at once; what followed the last checkpoint is lost")
        raise Interrupted(
            "stopped at once: what followed the last checkpoint is lost. "
            f"Go on from it with: flowmbpo train --resume {shlex.quote(str(run_dir.path))}"
        ) from error
    except BaseException as error:  # whatever ended the run is recorded and passed on
        _record(run_dir, "failed", f"{type(error).__name__}: {error}")
        raise


def _record(run_dir: RunDirectory, status: Literal["failed", "interrupted"], error: str) -> None:
    try:
        run_dir.update_status(status, error=error)
    except StorageError as refusal:  # the disk that ended the run may refuse this too: the cause matters more
        log.error("%s", refusal)


@contextmanager
def logged_to(file: Path, *, warn: bool) -> Iterator[None]:
    """Whatever the package logs meanwhile goes to `file`, with times; warnings to stderr too if `warn`."""
    handlers: list[logging.Handler] = [logging.FileHandler(file, encoding="utf-8")]
    handlers[0].setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    if warn:
        handlers.append(logging.StreamHandler())
        handlers[1].setLevel(logging.WARNING)
        handlers[1].setFormatter(logging.Formatter("Warning: %(message)s"))
    for handler in handlers:
        log.addHandler(handler)
    try:
        yield
    finally:
        for handler in handlers:
            log.removeHandler(handler)
            handler.close()


def log_backend(config: ExperimentConfig) -> None:
    """Say loudly where another simulator stands in for the one that the task is known by."""
    for notice in backend_notices(config.task):
        log.warning("%s", notice)


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


def log_high_cost(config: ExperimentConfig, spec: EnvSpec) -> None:
    """Warn of a run that is marked `high_cost`, with the estimate of what it takes."""
    if config.high_cost:
        flops = config.training.epochs * estimate_cost(config, spec).flops_per_epoch
        log.warning(
            "%s is marked high_cost: %s agent steps and about %.1e FLOPs%s",
            config.name,
            f"{total_env_steps(config):,}",
            flops,
            f" ({config.cost})" if config.cost else "",
        )
