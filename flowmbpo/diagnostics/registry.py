"""The diagnostics by name."""

from __future__ import annotations

from collections.abc import Callable

from flowmbpo.diagnostics.actions.diagnosis import measure_actions
from flowmbpo.diagnostics.compute import measure_compute
from flowmbpo.diagnostics.diagnosis import Diagnosis
from flowmbpo.diagnostics.effort import Effort
from flowmbpo.diagnostics.esnr.diagnosis import measure_esnr
from flowmbpo.diagnostics.gradient.diagnosis import measure_gradient
from flowmbpo.diagnostics.health.verdict import measure_health
from flowmbpo.diagnostics.jacobians.diagnosis import measure_jacobians
from flowmbpo.diagnostics.reward_gap import measure_reward_gap
from flowmbpo.diagnostics.rollout.diagnosis import measure_rollout
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
