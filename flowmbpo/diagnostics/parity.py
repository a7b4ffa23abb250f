"""Parameter parity of two configs: a comparison is fair only at equal size."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from flowmbpo.config.experiment import ExperimentConfig
from flowmbpo.diagnostics.parameters import build_meta_agent, parameter_counts, solved_widths
from flowmbpo.envs.spec import EnvSpec
from flowmbpo.models.actors.config import GaussianActorConfig
from flowmbpo.models.dynamics.config import MLPDynamicsConfig

LARGEST_GAP_PERCENT = 2.0
COMPARED = ("encoder", "dynamics", "reward")  # what the study keeps equal (its invariant 4)


@dataclass(frozen=True)
class PartParity:
    """One part's parameter counts; the gap is b's relative to a's, in percent (None where a has none)."""

    part: str
    a: int
    b: int

    @property
    def gap_percent(self) -> float | None:
        """100 (b - a) / a."""
        if self.a == 0:
            return 0.0 if self.b == 0 else None
        return 100.0 * (self.b - self.a) / self.a

    def to_dict(self) -> dict[str, Any]:
        """The JSON object."""
        return {"part": self.part, "a": self.a, "b": self.b, "gap_percent": self.gap_percent}


@dataclass(frozen=True)
class Parity:
    """Counts of two configs side by side. `within` holds when model and actor differ by at most 2%."""

    a: str
    b: str
    parts: tuple[PartParity, ...]
    model: PartParity
    actor: PartParity
    widths_a: dict[str, Any]
    widths_b: dict[str, Any]

    @property
    def within(self) -> bool:
        """Whether encoder + dynamics + reward, and the actor, differ by at most 2%."""
        gaps = (self.model.gap_percent, self.actor.gap_percent)
        return all(gap is not None and abs(gap) <= LARGEST_GAP_PERCENT for gap in gaps)

    def to_dict(self) -> dict[str, Any]:
        """The JSON document."""
        return {
            "a": self.a,
            "b": self.b,
            "parts": [part.to_dict() for part in self.parts],
            "model": self.model.to_dict(),
            "actor": self.actor.to_dict(),
            "solved_widths": {"a": self.widths_a, "b": self.widths_b},
            "largest_gap_percent": LARGEST_GAP_PERCENT,
            "within": self.within,
        }


def parity(a: ExperimentConfig, b: ExperimentConfig, spec_a: EnvSpec, spec_b: EnvSpec) -> Parity:
    """Compare the two configs' agents, built for their tasks' dimensions (no weights are allocated)."""
    agents = build_meta_agent(a, spec_a), build_meta_agent(b, spec_b)
    left, right = (parameter_counts(agent) for agent in agents)
    parts = tuple(PartParity(name, left[name], right[name]) for name in left)
    return Parity(
        a=a.name,
        b=b.name,
        parts=parts,
        model=PartParity("model", *(sum(counts[name] for name in COMPARED) for counts in (left, right))),
        actor=PartParity("actor", left["actor"], right["actor"]),
        widths_a=solved_widths(agents[0]),
        widths_b=solved_widths(agents[1]),
    )


def reference_config(config: ExperimentConfig) -> ExperimentConfig:
    """The same experiment with PWM's MLP dynamics and Gaussian actor at the config's written widths."""
    dynamics = MLPDynamicsConfig(units=config.model.dynamics.units)
    actor = GaussianActorConfig(units=config.actor.units)
    model = config.model.model_copy(update={"dynamics": dynamics})
    return config.model_copy(update={"name": "mlp-gaussian-reference", "model": model, "actor": actor})
