"""The diagnostics by name, and what a run measures of itself while it trains."""

from __future__ import annotations

from collections.abc import Callable

from flowmbpo.diagnostics.actions import measure_actions
from flowmbpo.diagnostics.compute import measure_compute
from flowmbpo.diagnostics.esnr import light_esnr, measure_esnr
from flowmbpo.diagnostics.gradient.diagnosis import measure_gradient
from flowmbpo.diagnostics.health.engine import HealthFinding, light_health, measure_health
from flowmbpo.diagnostics.interface import Diagnosis, Effort
from flowmbpo.diagnostics.jacobians import light_jacobians, measure_jacobians
from flowmbpo.diagnostics.reward_gap import measure_reward_gap
from flowmbpo.diagnostics.rollout.diagnosis import light_rollout, measure_rollout
from flowmbpo.diagnostics.subject import Subject

DIAGNOSTICS: dict[str, Callable[[Subject, Effort], Diagnosis]] = {
    "health": measure_health,
    "jacobians": measure_jacobians,
    "esnr": measure_esnr,
    "gradient": measure_gradient,
    "rollout": measure_rollout,
    "reward-gap": measure_reward_gap,
    "actions": measure_actions,
    "compute": measure_compute,
}


def measure_light(subject: Subject, effort: Effort) -> tuple[dict[str, float], list[HealthFinding]]:
    """Metrics by their keys in metrics.jsonl, and what is broken or worth knowing.

    ESNR of both gradients, Jacobian norms, k-step errors, and the health checks that need no episodes.
    The subject needs a replay buffer. Raises DataError where that is empty.
    """
    findings = list(light_health(subject))  # first: where weights are not finite the rest cannot be measured
    if any(finding.name == "nan-weights" for finding in findings):
        return {}, findings
    return light_esnr(subject, effort) | light_jacobians(subject, effort) | light_rollout(subject, effort), findings
