"""From a checkpoint to its diagnoses, and to the JSON document and the HTML page that hold them."""

from __future__ import annotations

import itertools
import json
import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flowmbpo.diagnostics.health.probes.weights import require_finite
from flowmbpo.diagnostics.interface import Diagnosis, Effort
from flowmbpo.diagnostics.page import Page, Section, draw_png
from flowmbpo.diagnostics.registry import DIAGNOSTICS
from flowmbpo.diagnostics.subject import Origin, Subject
from flowmbpo.errors import FlowMBPOError, StorageError
from flowmbpo.files import StagedFile, refused
from flowmbpo.json_documents import json_value
from flowmbpo.runs.subjects import load_subject

HEALTH = "health"
DIAGNOSIS_SCHEMA = 2
"""Version of the JSON document, as its `schema_version` says."""
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
    measured: list[Measured] = field(default_factory=list)

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
        stated = ("config", "task", "seed", "episodes", "windows", "device", "healthy")
        return {
            "schema_version": DIAGNOSIS_SCHEMA,
            "checkpoint": self.origin.checkpoint,
            "checkpoint_sha256": self.origin.sha256,
            **{key: getattr(self.origin, key) for key in ("epoch", "agent_steps", "env_steps")},
            **{key: getattr(self, key) for key in stated},
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
    config, spec = subject.config, subject.agent.spec
    label = spec.label if subject.only is None else spec.tasks[subject.only].name
    outcome = DiagnoseOutcome(
        origin=subject.origin,
        config=config.name,
        task=label,
        seed=subject.seed,
        episodes=subject.episode_count,
        windows=subject.windows_source,
        device=str(subject.device),
        folder=Path("results") / config.phase / label / config.name / f"seed{config.seed}",
    )
    if prepare is not None:
        prepare(outcome)
    for name in names:
        if progress is not None:
            progress(name)
        outcome.measured.append(_measure(name, subject, chosen, keep_going=keep_going))
    return outcome


def _measure(name: str, subject: Subject, effort: Effort, *, keep_going: bool) -> Measured:
    began = time.monotonic()
    try:
        if name != HEALTH:  # which says itself what is not finite
            require_finite(subject)
        diagnosis = DIAGNOSTICS[name](subject, effort)
        return Measured(name, time.monotonic() - began, diagnosis)
    except Exception as error:  # a bug in one must not lose what the others measured
        if not keep_going:
            raise
        told = error if isinstance(error, FlowMBPOError) else None
        if told is None:
            log.exception("%s failed", name)
            told = FlowMBPOError(f"{type(error).__name__}: {error} (a bug of flowmbpo; the traceback is on stderr)")
        return Measured(name, time.monotonic() - began, None, told)


_IDENTITY = ("schema_version", "checkpoint_sha256", "task", "seed", "episodes")


def claim_folder(folder: Path) -> None:
    """Make sure that files can be written to `folder`, before minutes are spent on what they will hold.

    Raises StorageError.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise refused(folder, error) from error
    if not os.access(folder, os.W_OK | os.X_OK):
        raise StorageError(f"{folder}: may not be written to. Check its permissions, or choose another with --out.")


def write_report(outcome: DiagnoseOutcome, folder: Path) -> dict[str, Path]:
    """Write `diagnosis.json` and `diagnosis.html` to `folder`; where they lie, by `json` and `html`.

    A report of the same checkpoint, task, seed and episodes is replaced; another one (also one of another schema
    version, which is not read) is kept, and this one is called `diagnosis-2`, `diagnosis-3`, ... Raises StorageError;
    earlier files then remain.
    """
    claim_folder(folder)
    document = json_value(outcome.to_dict())
    names = (folder / (f"diagnosis-{count}.json" if count > 1 else "diagnosis.json") for count in itertools.count(1))
    path = next(path for path in names if _may_take(path, document))
    page, beside = report_page(outcome).render(), path.with_suffix(".html")
    with StagedFile(path) as figures, StagedFile(beside) as pictures:
        figures.write((json.dumps(document, indent=2, allow_nan=False) + "\n").encode())
        pictures.write(page.encode())
        figures.finish()
        pictures.finish()  # both are complete before either is put in place
        figures.commit()
        pictures.commit()
    return {"json": path, "html": beside}


def report_page(outcome: DiagnoseOutcome) -> Page:
    """The page of an outcome, pictures drawn."""
    healthy, verdict = _verdict(outcome)
    facts = [
        ("checkpoint", outcome.origin.checkpoint),
        ("SHA-256", outcome.origin.sha256),
        ("trained for", f"{outcome.origin.epoch:,} epochs, {outcome.origin.agent_steps:,} agent steps"),
        ("task", outcome.task),
        ("measured on", f"{outcome.windows}, and {outcome.episodes} real episodes (seed {outcome.seed})"),
        ("device", outcome.device),
    ]
    title = f"{outcome.config} on {outcome.task}: diagnosis"
    return Page(title, verdict, healthy, facts, [_section(each) for each in outcome.measured])


def _verdict(outcome: DiagnoseOutcome) -> tuple[bool | None, str]:
    health = next((each for each in outcome.measured if each.name == HEALTH), None)
    if health is None or health.diagnosis is None:
        reason = f": {health.error}" if health is not None else ""
        return None, f"Whether the run is healthy is not known{reason}"
    verdict = str(health.diagnosis.to_dict()["verdict"])
    if outcome.failed:
        verdict += f"\nNot measured: {', '.join(each.name for each in outcome.failed)} (see below)."
    return health.diagnosis.healthy, verdict


def _section(measured: Measured) -> Section:
    if measured.diagnosis is None:
        return Section(measured.name, error=str(measured.error))
    shown = measured.diagnosis
    return Section(measured.name, rows=shown.rows(), picture=draw_png(shown), reading=shown.reading)


def _may_take(path: Path, document: Mapping[str, Any]) -> bool:
    """Whether a report may be called `path`: the name is free, or that of a report on the very same thing."""
    if not path.exists() and not path.with_suffix(".html").exists():
        return True
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
        return all(report[key] == document[key] for key in _IDENTITY)
    except (OSError, ValueError, KeyError, TypeError):  # somebody else's file
        return False
