"""What `diagnose all` leaves: one JSON document and one HTML page, both or neither."""

from __future__ import annotations

import itertools
import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flowmbpo.diagnostics.page import Page, Section
from flowmbpo.errors import StorageError
from flowmbpo.files import StagedFile, refused
from flowmbpo.runs.diagnose import HEALTH, DiagnoseOutcome, Measured

STEM = "diagnosis"
_IDENTITY = ("checkpoint_sha256", "task", "seed", "episodes")


@dataclass(frozen=True)
class ReportFiles:
    """Where a report lies."""

    json: Path
    html: Path

    def to_dict(self) -> dict[str, str]:
        """The JSON object."""
        return {"json": str(self.json), "html": str(self.html)}


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


def write_report(outcome: DiagnoseOutcome, folder: Path) -> ReportFiles:
    """Write `diagnosis.json` and `diagnosis.html` to `folder`.

    A report of the same checkpoint, task, seed and episodes is replaced; another one is kept, and this
    one is called `diagnosis-2`, `diagnosis-3`, ... Raises StorageError; earlier files then remain.
    """
    claim_folder(folder)
    document = json_value(outcome.to_dict())
    stem = _free_stem(folder, document)
    files = ReportFiles(json=folder / f"{stem}.json", html=folder / f"{stem}.html")
    page = report_page(outcome).render()
    with StagedFile(files.json) as figures, StagedFile(files.html) as pictures:
        figures.write((json.dumps(document, indent=2, allow_nan=False) + "\n").encode())
        pictures.write(page.encode())
        figures.finish()
        pictures.finish()  # both are complete before either is put in place
        figures.commit()
        pictures.commit()
    return files


def report_page(outcome: DiagnoseOutcome) -> Page:
    """The page of an outcome, pictures drawn."""
    healthy, verdict = _verdict(outcome)
    facts = [
        ("checkpoint", outcome.origin.checkpoint),
        ("SHA-256", outcome.origin.sha256),
        ("trained for", f"{outcome.origin.epoch:,} epochs, {outcome.origin.env_steps:,} agent steps"),
        ("task", outcome.task),
        ("measured on", f"{outcome.windows}, and {outcome.episodes} real episodes (seed {outcome.seed})"),
        ("device", outcome.device),
    ]
    title = f"{outcome.config} on {outcome.task}: diagnosis"
    return Page(title, verdict, healthy, facts, [_section(each) for each in outcome.measured])


def json_value(value: Any) -> Any:
    """`value` as JSON can hold it: nan and infinity become null."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {str(key): json_value(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [json_value(inner) for inner in value]
    return value


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
    from flowmbpo.diagnostics.page import draw_png  # matplotlib: a second that a plain diagnosis need not wait

    return Section(measured.name, rows=measured.diagnosis.rows(), picture=draw_png(measured.diagnosis))


def _free_stem(folder: Path, document: Mapping[str, Any]) -> str:
    """The first name that is free, or that of a report on the very same thing."""
    for number in itertools.count(1):
        stem = STEM if number == 1 else f"{STEM}-{number}"
        path = folder / f"{stem}.json"
        if not path.exists() and not path.with_suffix(".html").exists():
            return stem
        if _identity(path) == [document[key] for key in _IDENTITY]:
            return stem
    raise AssertionError("itertools.count ended")


def _identity(path: Path) -> list[Any] | None:
    """What an earlier report is of; None for somebody else's file."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return [found[key] for key in _IDENTITY]
    except (OSError, ValueError, KeyError, TypeError):
        return None
