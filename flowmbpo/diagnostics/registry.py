"""The diagnostics by name."""

from __future__ import annotations

from collections.abc import Callable

from flowmbpo.diagnostics.actions import measure_actions
from flowmbpo.diagnostics.diagnosis import Diagnosis
from flowmbpo.diagnostics.effort import Effort
from flowmbpo.diagnostics.gradient import measure_gradient
from flowmbpo.diagnostics.health.verdict import measure_health
from flowmbpo.diagnostics.measured import measure_compute
from flowmbpo.diagnostics.measured_esnr import measure_esnr
from flowmbpo.diagnostics.measured_jacobians import measure_jacobians
from flowmbpo.diagnostics.reward_gap import measure_reward_gap
from flowmbpo.diagnostics.rollout import measure_rollout
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
