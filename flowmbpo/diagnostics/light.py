"""What a run measures of itself while it trains: replayed experience and imagination alone, no environment."""

from __future__ import annotations

from dataclasses import dataclass

from flowmbpo.diagnostics.effort import Effort
from flowmbpo.diagnostics.esnr.diagnosis import light_esnr
from flowmbpo.diagnostics.health.finding import Finding
from flowmbpo.diagnostics.health.light import light_health
from flowmbpo.diagnostics.jacobians.diagnosis import light_jacobians
from flowmbpo.diagnostics.rollout.diagnosis import light_rollout
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
    findings = tuple(light_health(subject, effort))  # first: where weights are not finite the rest cannot be measured
    if any(finding.name == "nan-weights" for finding in findings):
        return LightDiagnosis({}, findings)
    metrics = light_esnr(subject, effort) | light_jacobians(subject, effort) | light_rollout(subject, effort)
    return LightDiagnosis(metrics, findings)
