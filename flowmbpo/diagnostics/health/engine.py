"""`health`: measure with every probe, apply every rule, and say what they come to."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar

from flowmbpo.diagnostics.health.probes import Figures
from flowmbpo.diagnostics.health.probes.actor import measure_actor, measure_endings, measure_saturation
from flowmbpo.diagnostics.health.probes.alignment import measure_alignment
from flowmbpo.diagnostics.health.probes.columns import measure_columns
from flowmbpo.diagnostics.health.probes.critic import measure_critic
from flowmbpo.diagnostics.health.probes.dynamics import measure_errors, measure_imagined_return, measure_latents
from flowmbpo.diagnostics.health.probes.encoder import measure_encoder
from flowmbpo.diagnostics.health.probes.reward import measure_reward
from flowmbpo.diagnostics.health.probes.weights import measure_weights
from flowmbpo.diagnostics.health.rules import RULES, Rule, Severity
from flowmbpo.diagnostics.interface import Brief, Diagnosis, Drawing, Effort, Row
from flowmbpo.diagnostics.subject import Subject

Probe = Callable[..., Figures]  # of a subject, and whether to measure as a run does of itself (LIGHT)
MODEL_PROBES: dict[str, Probe] = {
    "reward": measure_reward,
    "dynamics": measure_errors,
    "latents": measure_latents,
    "encoder": measure_encoder,
    "action_columns": measure_columns,
    "alignment": measure_alignment,
}
POLICY_PROBES: dict[str, Probe] = {
    "actor": measure_actor,
    "critic": measure_critic,
    "policy": measure_saturation,
    "imagined_return": measure_imagined_return,
    "endings": measure_endings,
}
LIGHT = ("reward", "actor", "critic", "policy")
SHOWN_VALUES = SHOWN_ROWS = 7


@dataclass(frozen=True)
class HealthFinding:
    """One thing that is wrong (`broken`) or worth knowing (`note`).

    `name` is stable: programs match on it. `message` says what to do, `figures` what the judgement rests on.
    """

    name: str
    severity: Severity
    message: str
    figures: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class JudgedRow:
    """A rule with the value that it judged (None: not judged), and what it found."""

    rule: Rule
    value: float | None
    finding: HealthFinding | None = None

    @property
    def verdict(self) -> str:
        """In a word or two."""
        sound = "not judged" if self.value is None else "sound"
        return sound if self.finding is None else self.finding.severity

    @property
    def nearness(self) -> float:
        """How near a sound value is to its limit: 1 at it, by ratio."""
        low, high = self.rule.sound
        if self.value is None or not math.isfinite(self.value):
            return 0.0
        above = self.value / high if 0.0 < high < math.inf else 0.0
        below = low / self.value if low > 0.0 < self.value else self.value / low if -math.inf < low < 0.0 else 0.0
        return max(above, below)


def judge(checks: dict[str, Figures], rules: Iterable[Rule]) -> list[JudgedRow]:
    """Apply the rules to the figures of the probes. Of the rows of one topic the first that finds something speaks."""
    rows: list[JudgedRow] = []
    settled: set[tuple[str, str]] = set()
    for rule in rules:
        if rule.probe not in checks:
            continue
        figures, topic = checks[rule.probe], (rule.probe, rule.topic)
        value, finding = rule.value(figures), None
        if value is not None and topic not in settled and rule.finds(figures, value):
            judged = {rule.figure.rpartition(".")[2]: value}
            finding = HealthFinding(rule.name, rule.severity, rule.message(figures), judged)
            if rule.topic:
                settled.add(topic)
        rows.append(JudgedRow(rule, value, finding))
    return rows


@dataclass(frozen=True)
class HealthDiagnosis(Diagnosis):
    """The figures of all probes by name, and every rule that was applied to them. `curves` are what a picture draws."""

    name: ClassVar[str] = "health"
    checks: dict[str, Figures]
    judged: tuple[JudgedRow, ...]
    curves: dict[str, dict[str, list[float]]] = field(default_factory=dict)

    @property
    def findings(self) -> tuple[HealthFinding, ...]:
        """What is broken first, then what is worth knowing."""
        found = (row.finding for row in self.judged if row.finding is not None)
        return tuple(sorted(found, key=lambda finding: finding.severity != "broken"))

    @property
    def healthy(self) -> bool:
        """Nothing is broken; notes do not count."""
        return all(finding.severity != "broken" for finding in self.findings)

    @property
    def verdict(self) -> str:
        """One sentence."""
        broken, notes = (
            list(dict.fromkeys(finding.name for finding in self.findings if finding.severity == severity))
            for severity in ("broken", "note")
        )
        if not broken:
            return "healthy" + (f"; worth knowing: {', '.join(notes)}" if notes else "")
        finite = self.checks.get("weights", {}).get("finite", True)
        rest = "" if finite else "; its numbers are not finite, so nothing else could be measured"
        return f"broken: {', '.join(broken)}{rest}"

    def to_dict(self) -> dict[str, Any]:
        """The verdict, the findings, every rule with its value and range, and the figures of every probe."""
        return {
            "healthy": self.healthy,
            "verdict": self.verdict,
            "findings": [asdict(finding) for finding in self.findings],
            "rules": [
                {"finding": row.rule.name, "check": row.rule.probe, "figure": row.rule.figure, "value": row.value}
                | {"low": row.rule.sound[0], "high": row.rule.sound[1], "verdict": row.verdict}
                for row in self.judged
            ],
            "checks": self.checks,
        }

    def rows(self) -> list[Row]:
        """The verdict in words, a row per finding, then the figures by probe."""
        rows: list[Row] = [("verdict", self.verdict)]
        rows += [(f"{finding.severity}: {finding.name}", finding.message) for finding in self.findings]
        for check, figures in self.checks.items():
            rows += [(f"{check}: {_spoken(key)}", _shown(value)) for key, value in figures.items()]
        return rows

    def brief(self) -> Brief:
        """The findings, then the sound rows that come nearest to their limit; what the first finding says."""
        ranked = sorted(self.judged, key=lambda row: (row.finding is None, row.verdict != "broken", -row.nearness))
        shown = [row for row in ranked if row.finding is not None or row.nearness > 0.0][:SHOWN_ROWS]
        cells = [(r.rule.name, _spoken(r.rule.figure), _shown(r.value), in_range(r.rule), r.verdict) for r in shown]
        says = [f"{finding.name}: {finding.message}" for finding in self.findings[:1]]
        remarks = (*says, "Every finding in words, and every figure: --verbose")
        return Brief(f"health: {self.verdict}", ("finding", "figure", "value", "sound", "verdict"), cells, remarks)

    def draw(self, figure: Drawing) -> None:
        """Predicted against real reward, actor gradients through the horizon, value against return, violation."""
        figure.suptitle(f"health: {self.verdict}", x=0.01, ha="left", fontsize=11, fontweight="bold", wrap=True)
        reward, actor, critic, latents = figure.subplots(2, 2).flat
        curves = {name: values for each in self.curves.values() for name, values in each.items()}
        _plot(reward, curves, "reward", "real", "predicted", "real reward", "predicted reward")
        _plot(actor, curves, "actor gradient", "", "action_gradient_norms", "imagined step", "|d J / d a_h|")
        _plot(critic, curves, "value", "return", "value", "discounted return", "value")
        _plot(latents, curves, "latents", "", "violation", "imagined step", "off the simplex by")


def measure_health(subject: Subject, effort: Effort) -> HealthDiagnosis:
    """Run every probe (of the policy where the run trains one). Where the weights are not finite no other runs."""
    del effort  # the probes have sample sizes of their own
    checks = _measure(subject)
    curves = {name: figures.pop("curves") for name, figures in checks.items() if "curves" in figures}
    return HealthDiagnosis(checks, tuple(judge(checks, RULES)), curves)


def light_health(subject: Subject) -> list[HealthFinding]:
    """What `measure_health` finds without real episodes, on 256 states: tens of milliseconds for a small model."""
    rows = judge(_measure(subject, light=True), [rule for rule in RULES if rule.light])
    return [row.finding for row in rows if row.finding is not None]


def _measure(subject: Subject, *, light: bool = False) -> dict[str, Figures]:
    checks = {"weights": measure_weights(subject)}
    if checks["weights"]["finite"]:
        for name, probe in (MODEL_PROBES | (POLICY_PROBES if subject.trains_policy else {})).items():
            if name in LIGHT or not light:
                checks[name] = probe(subject, light=True) if light else probe(subject)
    return checks


def in_range(rule: Rule) -> str:
    """The sound range in words."""
    low, high = rule.sound
    if low == high:
        return "none" if low == 0.0 else f"{low:.4g}"
    if math.isinf(low):
        return f"<= {high:.4g}"
    return f">= {low:.4g}" if math.isinf(high) else f"{low:.4g} to {high:.4g}"


def table_of_findings() -> str:
    """The table of `docs/diagnostics.md`, in Markdown: a line per finding."""
    lines = ["| finding | kind | sound figures | measured on |", "|---|---|---|---|"]
    for name in dict.fromkeys(rule.name for rule in RULES):
        rules = [rule for rule in RULES if rule.name == name]
        kinds = ", ".join(dict.fromkeys(rule.severity for rule in rules))
        kinds += "; in training" if any(rule.light for rule in rules) else ""
        figures = "; ".join(dict.fromkeys(f"{_spoken(rule.figure)} {in_range(rule)}" for rule in rules))
        needs = ", ".join(sorted({need for rule in rules for need in rule.needs}))
        lines.append(f"| `{name}` | {kinds} | {figures} | {needs or 'the checkpoint'} |")
    return "\n".join(lines) + "\n"


def _spoken(key: str) -> str:
    return key.replace("_", " ").replace(".", ": ")


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, dict):
        if value.keys() == {"value", "low", "high"}:
            return f"{value['value']:.4g} [{value['low']:.4g}, {value['high']:.4g}]"
        return ", ".join(f"{_spoken(str(key))} {_shown(item)}" for key, item in value.items()) or "none"
    if isinstance(value, list | tuple):
        rest = len(value) - SHOWN_VALUES
        shown = ", ".join(_shown(item) for item in value[:SHOWN_VALUES])
        return (shown + (f" and {rest} more" if rest > 0 else "")) or "none"
    return "-" if value is None else str(value)


def _plot(axes: Any, curves: dict[str, list[float]], title: str, x: str, y: str, x_label: str, y_label: str) -> None:
    """y over x as points beside the diagonal, or over its steps as a line; what is missing says so."""
    axes.set_title(title, fontsize=9)
    axes.set(xlabel=x_label, ylabel=y_label)
    if y not in curves:
        axes.text(0.5, 0.5, "not measured", ha="center", va="center", transform=axes.transAxes, color="#888888")
    elif x:
        axes.plot(curves[x], curves[y], ".", markersize=2, alpha=0.5, color="#4477aa")
        both = [*curves[x], *curves[y]]
        axes.plot([min(both), max(both)], [min(both), max(both)], color="#bbbbbb", linewidth=1, zorder=0)
    else:
        axes.plot(curves[y], marker="o", markersize=3, color="#ee6677")
        axes.set_ylim(bottom=0.0)
