"""How a run ends early and goes on again: stop requests and failures; what a resume finds, accepts and puts back."""

from __future__ import annotations

import logging
import os
import shlex
import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, Literal, TypeVar

from flowmbpo.checkpoints.load import Loaded, load, load_replay, names, resolve
from flowmbpo.checkpoints.payload import architecture_mismatch, restore_rng
from flowmbpo.config.actors import FlowActorConfig
from flowmbpo.config.base import FrozenConfig
from flowmbpo.config.experiment import ExperimentConfig, config_differences
from flowmbpo.envs.resolve import ResolvedTask
from flowmbpo.errors import CheckpointError, ConfigError, Interrupted, RunDirectoryError, StorageError
from flowmbpo.presets.load import experiment_from_dict, to_yaml
from flowmbpo.runs.directory import RunDirectory, default_path
from flowmbpo.training.collector import Collector
from flowmbpo.training.learner import Learner

log = logging.getLogger("flowmbpo")

FREE_SECTIONS = ("evaluation.", "diagnostics.", "tracking.", "checkpoint.")
FREE_KEYS = (
    *("device", "compute.threads", "compute.compile", "task.workers", "description", "cost", "high_cost"),
    *("data.path", "data.threads", "data.prefetch"),  # the data themselves are told by their fingerprint
)
EPOCHS = "training.epochs"
Section = TypeVar("Section", bound=FrozenConfig)
ACKNOWLEDGEMENT = (
    b"\nStopping: the current epoch is finished and saved first (before the first epoch: the random episodes and the "
    b"warm-up too). Ctrl-C again stops at once, unsaved.\n"
)
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


class StopRequest:
    """Whether a signal asked the run to stop. Saving inside a handler is how checkpoints break."""

    def __init__(self) -> None:
        self.signal: str | None = None

    def __bool__(self) -> bool:
        return self.signal is not None


@contextmanager
def stop_on_signals() -> Iterator[StopRequest]:
    """Catch SIGINT, SIGTERM and SIGUSR1; a second SIGINT stops at once, unsaved.

    Python lets the main thread alone install handlers: in another one nothing is caught.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return

    def note(number: int, frame: FrameType | None) -> None:
        if request and number == signal.SIGINT:
            raise KeyboardInterrupt
        if not request:
            os.write(2, ACKNOWLEDGEMENT)  # no buffered stream: the handler may have interrupted one
        request.signal = signal.Signals(number).name

    previous = {number: signal.signal(number, note) for number in SIGNALS}
    try:
        yield request
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def find_run(
    config: ExperimentConfig, task: ResolvedTask, out: Path | None, resume: Path | Literal["auto"] | None
) -> tuple[Path, Loaded | None, ExperimentConfig]:
    """The run's directory, the checkpoint that it goes on from, and the config as the run began with it.

    Raises CheckpointError when there is no checkpoint, RunDirectoryError when a lone file is named or `out` names
    another directory, and as `load_for_resume` does.
    """
    path = out.expanduser() if out is not None else default_path(Path(), config, task.label)
    if resume is None:
        return path, None, config
    resume = (path if resume == "auto" else resume).expanduser().absolute()
    if not resume.exists():
        raise RunDirectoryError(
            f"--resume: there is no run in {resume} to go on with; leave --resume away to start it, "
            "or name the run (--resume RUN_DIR): --set is part of a run's folder name"
        )
    if (resume / "run.json").is_file() and not names(resume / "checkpoints"):
        RunDirectory.open_existing(resume).close()  # refused while a process still runs there
        raise RunDirectoryError(
            f"{resume}: the run ended before its first checkpoint, so there is nothing to go on with; "
            "remove the directory or choose another with --out, and leave --resume away"
        )
    checkpoint = resolve(resume)
    run_dir = checkpoint.parent.parent
    if checkpoint.parent.name != "checkpoints" or not (run_dir / "run.json").is_file():
        raise RunDirectoryError(
            f"{checkpoint}: lies in no run directory, so there is no run to continue; "
            "name a run directory, or a checkpoint inside one"
        )
    if out is not None and out.expanduser().absolute() != run_dir:
        raise RunDirectoryError(f"--out {out}: a resumed run stays in its own directory, {run_dir}; leave --out away")
    return run_dir, *load_for_resume(checkpoint, config)


def load_for_resume(checkpoint: Path, config: ExperimentConfig) -> tuple[Loaded, ExperimentConfig]:
    """Load `checkpoint` and check that `config` may continue it; also `config` as the run began with it.

    Raises ConfigError showing every difference that a resume cannot accept.
    """
    loaded = load(checkpoint)
    stored = experiment_from_dict(loaded.payload["config"], str(checkpoint))
    config, epoch = as_started(config, stored), int(loaded.payload["epoch"])
    free = (*FREE_SECTIONS, EPOCHS) if config.training.epochs >= max(stored.training.epochs, epoch) else FREE_SECTIONS
    differences = (each for each in config_differences(stored, config) if each.key not in FREE_KEYS)
    refused = [each for each in differences if not each.key.startswith(free)]
    if refused:
        shown = "\n".join(f"  {difference}" for difference in refused)
        raise ConfigError(
            f"--resume: the config differs from the run's own (run -> asked for):\n{shown}\n"
            "A resume accepts a longer training.epochs and changes of evaluation, diagnostics, tracking, checkpoint, "
            "device and threads only. Start a new run with --out for anything else."
        )
    return loaded, config


def as_started(config: ExperimentConfig, stored: ExperimentConfig) -> ExperimentConfig:
    """`config` with what a run learns from the checkpoint that it starts from, where it does not state that itself:
    the file's hash, the widths adopted, and whether it collects with the policy from the start.

    So that the command line which started the run resumes it too.
    """
    if config.initial is None or stored.initial is None:
        return config
    dynamics, actor = _filled(config.model.dynamics, stored.model.dynamics, "solved_units"), config.actor
    if isinstance(actor, FlowActorConfig) and isinstance(stored.actor, FlowActorConfig):
        actor = _filled(actor, stored.actor, "solved_units")
    initial = _filled(config.initial, stored.initial, "sha256", "random_episodes")
    model = config.model.model_copy(update={"dynamics": dynamics})
    return config.model_copy(update={"model": model, "actor": actor, "initial": initial})


def _filled(own: Section, stored: FrozenConfig, *keys: str) -> Section:
    """`own` with those of the `keys` that it leaves null as they are stored."""
    return own.model_copy(update={key: getattr(stored, key) for key in keys if getattr(own, key) is None})


def restore(learner: Learner, collector: Collector | None, loaded: Loaded) -> None:
    """Put the training where the checkpoint left it, its random generators and replay buffer included.

    Raises CheckpointError on another architecture, or where the checkpoint has no replay buffer.
    """
    payload = loaded.payload
    mismatch = architecture_mismatch(learner.agent.state_dict(), payload["agent"])
    if mismatch is not None:
        raise CheckpointError(f"{loaded.path}: {mismatch}")
    if payload["started"]:
        replay = load_replay(loaded)
        if replay is None:
            raise CheckpointError(
                f"{loaded.path}: holds no replay buffer, so the run cannot go on exactly; resume from latest.pt"
            )
        learner.batches.replay.load_state_dict(replay)
    learner.load_state_dict(payload)
    if collector is not None:
        collector.load_state_dict(payload)
    restore_rng(payload["rng"], learner.generators)


def _record(run_dir: RunDirectory, status: Literal["failed", "interrupted"], error: str) -> None:
    try:
        run_dir.update_status(status, error=error)
    except StorageError as refusal:  # the disk that ended the run may refuse this too: the cause matters more
        log.error("%s", refusal)


@contextmanager
def opened_run(
    path: Path, config: ExperimentConfig, facts: Mapping[str, Any], loaded: Loaded | None
) -> Iterator[RunDirectory]:
    """The run's directory, new or gone on in, with `facts` in its run.json.

    Whatever ends the run inside is recorded there, where the disk lets it, and raised again.
    """
    with RunDirectory.create(path) if loaded is None else RunDirectory.open_existing(path) as run_dir:
        try:
            if loaded is not None:
                run_dir.mark_resumed(loaded.path.name, int(loaded.payload["epoch"]))
            run_dir.update_status("running", **facts, error=None, outcome=None)
            run_dir.write_config(to_yaml(config))
            yield run_dir
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
