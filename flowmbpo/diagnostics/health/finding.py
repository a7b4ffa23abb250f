"""What a health check returns."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from flowmbpo.diagnostics.interface import Effort
from flowmbpo.diagnostics.subject import Subject

Severity = Literal["broken", "note"]


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong (`broken`) or worth knowing (`note`).

    `name` is stable: programs match on it. `message` says in one or two plain sentences what was
    measured and what to do. `figures` are the numbers that the judgement rests on.
    """

    name: str
    severity: Severity
    message: str
    figures: dict[str, float] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """The JSON object."""
        return {"name": self.name, "severity": self.severity, "message": self.message, "figures": self.figures}


@dataclass(frozen=True)
class Check:
    """What one check measured (always reported, plain JSON values) and what it found.

    `curves` are what a picture draws: series of numbers by name, left out of the table.
    """

    name: str
    figures: dict[str, Any]
    findings: tuple[Finding, ...] = ()
    curves: dict[str, list[float]] = field(default_factory=dict)


HealthCheck = Callable[[Subject, Effort], Check]
