"""From a checkpoint to its diagnoses."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flowmbpo.diagnostics.diagnosis import Diagnosis
from flowmbpo.diagnostics.effort import Effort
from flowmbpo.diagnostics.health.weights import require_finite
from flowmbpo.diagnostics.registry import DIAGNOSTICS
from flowmbpo.diagnostics.subject import Origin, Subject
from flowmbpo.errors import FlowMBPOError
from flowmbpo.runs.build import env_spec
from flowmbpo.runs.checkpoint_subject import load_subject, newest_checkpoint

__all__ = ["DiagnoseOutcome", "Measured", "diagnose", "load_subject", "newest_checkpoint"]

HEALTH = "health"
log = logging.getLogger("flowmbpo")


@dataclass(frozen=True)
class Measured:
    """What came of one diagnostic, after `seconds`: a diagnosis, or the error that it ended with."""

    name: str
    seconds: float
    diagnosis: Diagnosis | None
    error: FlowMBPOError | None = None

    def to_dict(self) -> dict[str, Any]:
        """The diagnosis' JSON object, or `{"error": {"kind", "message"}}`."""
        if self.diagnosis is not None:
            return self.diagnosis.to_dict()
        return {"error": {"kind": self.error.kind, "message": str(self.error)}} if self.error else {}


@dataclass(frozen=True)
class DiagnoseOutcome:
    """What `diagnose --json` prints: the checkpoint, the task, and one document per diagnostic.

    `folder` is where the files of `diagnose all` go unless told otherwise.
    """

    origin: Origin
    config: str
    task: str
    seed: int
    episodes: int
    windows: str
    device: str
    folder: Path
    measured: tuple[Measured, ...]

    @property
    def diagnoses(self) -> tuple[Diagnosis, ...]:
        """Those that ended well."""
        return tuple(each.diagnosis for each in self.measured if each.diagnosis is not None)

    @property
    def healthy(self) -> bool:
        """Whether every diagnosis is; a diagnostic that failed says nothing."""
        return all(diagnosis.healthy for diagnosis in self.diagnoses)

    @property
    def failed(self) -> tuple[Measured, ...]:
        """Those that ended with an error."""
        return tuple(each for each in self.measured if each.error is not None)

    def to_dict(self) -> dict[str, Any]:
        """The JSON document."""
        return {
            "checkpoint": self.origin.checkpoint,
            "checkpoint_sha256": self.origin.sha256,
            "epoch": self.origin.epoch,
            "env_steps": self.origin.env_steps,
            "config": self.config,
            "task": self.task,
            "seed": self.seed,
            "episodes": self.episodes,
            "windows": self.windows,
            "device": self.device,
            "healthy": self.healthy,
            "failed": [each.name for each in self.failed],
            "seconds": {each.name: round(each.seconds, 3) for each in self.measured},
            **{each.name: each.to_dict() for each in self.measured},
        }


def diagnose(
    names: Sequence[str],
    checkpoint: Path,
    *,
    task: str | None = None,
    device: str = "auto",
    seed: int = 0,
    effort: Effort | None = None,
    keep_going: bool = False,
    prepare: Callable[[DiagnoseOutcome], None] | None = None,
    progress: Callable[[str], None] | None = None,
) -> DiagnoseOutcome:
    """Run the named diagnostics on a checkpoint.

    With `keep_going` an error of one is kept in its place and the others still run; without, it is
    raised. `prepare` sees the outcome while nothing is measured yet, to refuse what could not be
    written; `progress` hears each name before it is measured. Raises CheckpointError, ConfigError,
    EnvironmentUnavailableError, and what the diagnostics raise.
    """
    chosen = effort or Effort()
    subject = load_subject(checkpoint, task=task, device=device, seed=seed, episodes=chosen.episodes)
    if prepare is not None:
        prepare(_outcome(subject, ()))
    found = []
    for name in names:
        if progress is not None:
            progress(name)
        found.append(_measure(name, subject, chosen, keep_going=keep_going))
    return _outcome(subject, tuple(found))


def _measure(name: str, subject: Subject, effort: Effort, *, keep_going: bool) -> Measured:
    began = time.monotonic()
    try:
        if name != HEALTH:  # which says itself what is not finite
            require_finite(subject)
        diagnosis = DIAGNOSTICS[name](subject, effort)
    except FlowMBPOError as error:
        if not keep_going:
            raise
        return Measured(name, time.monotonic() - began, None, error)
    except Exception as error:  # a bug in one must not lose what the others measured
        if not keep_going:
            raise
        log.exception("%s failed", name)
        bug = FlowMBPOError(f"{type(error).__name__}: {error} (a bug of flowmbpo; the traceback is on stderr)")
        return Measured(name, time.monotonic() - began, None, bug)
    return Measured(name, time.monotonic() - began, diagnosis)


def _outcome(subject: Subject, measured: tuple[Measured, ...]) -> DiagnoseOutcome:
    config = subject.config
    spec = env_spec(config)
    label = spec.label if subject.only is None else spec.tasks[subject.only].name
    return DiagnoseOutcome(
        origin=subject.origin,
        config=config.name,
        task=label,
        seed=subject.seed,
        episodes=subject.episode_count,
        windows=subject.windows_source,
        device=str(subject.device),
        folder=Path("results") / config.phase / label / config.name / f"seed{config.seed}",
        measured=measured,
    )
