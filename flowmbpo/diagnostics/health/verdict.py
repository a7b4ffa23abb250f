"""`health`: every check, and what they come to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from flowmbpo.diagnostics.health.action_columns import check_action_columns
from flowmbpo.diagnostics.health.actor import check_actor
from flowmbpo.diagnostics.health.alignment import check_alignment
from flowmbpo.diagnostics.health.buffer import check_buffer
from flowmbpo.diagnostics.health.critic import check_critic
from flowmbpo.diagnostics.health.dynamics import check_dynamics
from flowmbpo.diagnostics.health.encoder import check_encoder
from flowmbpo.diagnostics.health.endings import check_endings
from flowmbpo.diagnostics.health.finding import Check, Finding, HealthCheck
from flowmbpo.diagnostics.health.latents import check_latents
from flowmbpo.diagnostics.health.picture import draw_health
from flowmbpo.diagnostics.health.policy import check_policy
from flowmbpo.diagnostics.health.promise import check_promise
from flowmbpo.diagnostics.health.reward import check_reward
from flowmbpo.diagnostics.health.weights import check_weights
from flowmbpo.diagnostics.interface import Diagnosis, Effort, Row
from flowmbpo.diagnostics.subject import Subject

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MODEL_CHECKS: tuple[HealthCheck, ...] = (
    check_reward,
    check_dynamics,
    check_latents,
    check_encoder,
    check_action_columns,
    check_buffer,
    check_alignment,
)
POLICY_CHECKS: tuple[HealthCheck, ...] = (
    check_actor,
    check_critic,
    check_policy,
    check_promise,
    check_endings,
)
"""In the order of the table, after those of the model. `check_weights` comes before them all."""
SHOWN_VALUES = 8


@dataclass(frozen=True)
class HealthDiagnosis(Diagnosis):
    """All checks of one checkpoint.

    `measurable` false: its weights or outputs are not finite, and nothing else was measured.
    """

    name: ClassVar[str] = "health"
    checks: tuple[Check, ...]
    measurable: bool = True

    @property
    def findings(self) -> tuple[Finding, ...]:
        """What is broken first, then what is worth knowing."""
        found = [finding for check in self.checks for finding in check.findings]
        return tuple(sorted(found, key=lambda finding: finding.severity != "broken"))

    @property
    def healthy(self) -> bool:
        """Nothing is broken; notes do not count."""
        return all(finding.severity != "broken" for finding in self.findings)

    @property
    def verdict(self) -> str:
        """One sentence."""
        broken = _names(self.findings, "broken")
        notes = _names(self.findings, "note")
        if not broken:
            return "healthy" + (f"; worth knowing: {', '.join(notes)}" if notes else "")
        rest = "" if self.measurable else "; its numbers are not finite, so nothing else could be measured"
        return f"broken: {', '.join(broken)}{rest}"

    def to_dict(self) -> dict[str, Any]:
        """The verdict, the findings, and the figures of every check."""
        return {
            "healthy": self.healthy,
            "verdict": self.verdict,
            "findings": [finding.to_dict() for finding in self.findings],
            "checks": {check.name: check.figures for check in self.checks},
        }

    def rows(self) -> list[Row]:
        """The verdict in words, a row per finding, then the figures by check."""
        found: list[Row] = [("verdict", self.verdict)]
        found += [(f"{finding.severity}: {finding.name}", finding.message) for finding in self.findings]
        for check in self.checks:
            found += [(f"{check.name}: {_spoken(key)}", _shown(value)) for key, value in check.figures.items()]
        return found

    def draw(self, figure: Figure) -> None:
        """Predicted against real reward, actor gradients through the horizon, value against return, violation."""
        draw_health(figure, {check.name: check.curves for check in self.checks}, self.verdict)


def measure_health(subject: Subject, effort: Effort) -> HealthDiagnosis:
    """Run every check. Where the weights are not finite no other check runs.

    A run that trains its world model alone has no policy to judge.
    """
    weights = check_weights(subject, effort)
    if not weights.figures["finite"]:
        return HealthDiagnosis((weights,), measurable=False)
    checks = [*MODEL_CHECKS, *(POLICY_CHECKS if subject.trains_policy else ())]
    return HealthDiagnosis((weights, *(check(subject, effort) for check in checks)))


def _names(findings: tuple[Finding, ...], severity: str) -> list[str]:
    return list(dict.fromkeys(finding.name for finding in findings if finding.severity == severity))


def _spoken(key: str) -> str:
    return key.replace("_", " ")


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, dict):
        if {"value", "low", "high"} <= value.keys():
            return f"{value['value']:.4g} [{value['low']:.4g}, {value['high']:.4g}]"
        return ", ".join(f"{_spoken(str(key))} {_shown(item)}" for key, item in value.items()) or "none"
    if isinstance(value, list | tuple):
        rest = len(value) - SHOWN_VALUES
        shown = ", ".join(_shown(item) for item in value[:SHOWN_VALUES])
        return (shown + (f" and {rest} more" if rest > 0 else "")) or "none"
    return "-" if value is None else str(value)
