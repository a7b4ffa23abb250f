"""The health checks that a run makes of itself: replayed experience and imagination, no environment."""

from __future__ import annotations

from flowmbpo.diagnostics.effort import Effort
from flowmbpo.diagnostics.health.actor import Match, reach_findings, size_findings
from flowmbpo.diagnostics.health.critic import imagine_values, member_findings, spread_findings
from flowmbpo.diagnostics.health.finding import Finding
from flowmbpo.diagnostics.health.history import declared_fixed
from flowmbpo.diagnostics.health.objective import ActorObjective
from flowmbpo.diagnostics.health.policy import measure_saturation, saturation_findings
from flowmbpo.diagnostics.health.weights import check_weights
from flowmbpo.diagnostics.subject import Subject

SLOPE_ROWS = 4
SENSITIVITY_ROWS = 16
STATES = 256


def light_health(subject: Subject, effort: Effort) -> list[Finding]:
    """What is broken as far as it shows without real episodes, in some tens of milliseconds for a small model.

    Judged by the thresholds of `measure_health`, on at least 256 states. Weights that are not finite end it.
    """
    weights = check_weights(subject, effort)
    if not weights.figures["finite"]:
        return list(weights.findings)
    imagined = imagine_values(subject, max(effort.windows, STATES))
    slope = ActorObjective(subject, SLOPE_ROWS, "light slope").slopes(declared_fixed(subject, "actor"), joint=True)
    sensitivity = ActorObjective(subject, SENSITIVITY_ROWS, "light sensitivity").sensitivity()
    found = [
        *reach_findings(Match.of(slope), subject),
        *size_findings(sensitivity),
        *spread_findings(subject, imagined, None),
        *member_findings(imagined),
        *saturation_findings(measure_saturation(subject, max(effort.windows, STATES))),
    ]
    return [*weights.findings, *(finding for finding in found if finding.severity == "broken")]
