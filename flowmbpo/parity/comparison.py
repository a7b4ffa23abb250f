"""Whether two configs are a fair comparison: size, compute, and that nothing differs but what is compared."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from flowmbpo.config.actors import GaussianActorConfig
from flowmbpo.config.dynamics import MLPDynamicsConfig
from flowmbpo.config.experiment import Difference, ExperimentConfig, config_differences
from flowmbpo.errors import ConfigError, FlowMBPOError, nearest
from flowmbpo.json_documents import Document, plain
from flowmbpo.models.agent import Agent, build_meta_agent
from flowmbpo.parity.flops import ComputeCost, estimate_cost, parameter_counts, solved_widths
from flowmbpo.presets.schema import dotted_keys
from flowmbpo.spec import EnvSpec

LARGEST_GAP_PERCENT = 2.0
COMPARED = ("encoder", "dynamics", "reward")  # what the study keeps equal (its invariant 4)


@dataclass(frozen=True)
class PartParity(Document):
    """One part's parameter counts; the gap is b's relative to a's, in percent (None where a has none)."""

    derived = ("gap_percent",)
    part: str
    a: int
    b: int

    @property
    def gap_percent(self) -> float | None:
        """100 (b - a) / a."""
        if self.a == 0:
            return 0.0 if self.b == 0 else None
        return 100.0 * (self.b - self.a) / self.a


@dataclass(frozen=True)
class Parity(Document):
    """Counts of two configs side by side. `within` holds when model and actor differ by at most 2%."""

    derived = ("within",)
    a: str
    b: str
    parts: tuple[PartParity, ...]
    model: PartParity
    actor: PartParity
    solved_widths: dict[str, dict[str, Any]]
    largest_gap_percent: float = LARGEST_GAP_PERCENT

    @property
    def within(self) -> bool:
        """Whether encoder + dynamics + reward, and the actor, differ by at most 2%."""
        gaps = (self.model.gap_percent, self.actor.gap_percent)
        return all(gap is not None and abs(gap) <= LARGEST_GAP_PERCENT for gap in gaps)

    def summary(self) -> str:
        """How far b's model and actor are from those of a, the reference."""
        text = ", ".join(
            f"{part.part} {part.b:,} parameters ({part.gap_percent:+.2f}% against the reference)"
            for part in (self.model, self.actor)
            if part.gap_percent is not None
        )
        warning = "" if self.within else f"; more than {LARGEST_GAP_PERCENT}%: not a comparison at equal size"
        return f"{text}; widths {self.solved_widths['b']}{warning}"


def parity(a: tuple[str, Agent], b: tuple[str, Agent]) -> Parity:
    """Compare the agents of two configs, each given with the config's name."""
    left, right = (parameter_counts(agent) for _, agent in (a, b))
    parts = tuple(PartParity(name, left[name], right[name]) for name in left)
    return Parity(
        a=a[0],
        b=b[0],
        parts=parts,
        model=PartParity("model", *(sum(counts[name] for name in COMPARED) for counts in (left, right))),
        actor=PartParity("actor", left["actor"], right["actor"]),
        solved_widths={name: solved_widths(agent) for name, (_, agent) in zip("ab", (a, b), strict=True)},
    )


def reference_parity(config: ExperimentConfig, agent: Agent) -> Parity:
    """The agent of `config` against that of `reference_config`."""
    reference = reference_config(config)
    return parity((reference.name, build_meta_agent(reference, agent.spec)), (config.name, agent))


def reference_config(config: ExperimentConfig) -> ExperimentConfig:
    """The same experiment with PWM's MLP dynamics and Gaussian actor at the config's written widths."""
    actor = GaussianActorConfig(units=config.actor.units, activation=config.actor.activation)
    model = config.model.model_copy(update={"dynamics": MLPDynamicsConfig(units=config.model.dynamics.units)})
    return config.model_copy(update={"name": "mlp-gaussian-reference", "model": model, "actor": actor})


# What no update reads, and what moves its results by rounding at most.
LABELS = ("name", "phase", "description", "cost", "high_cost")
EXECUTION = ("device", "compute.threads", "compute.compile", "task.workers", "diagnostics", "checkpoint", "tracking")
INTENDED = ("model.dynamics", "actor", *LABELS, *EXECUTION)
"""Keys and sections that two arms of a comparison may hold differently. All others must be equal: `evaluation` and
`seed` too, for they move the figure that is reported, and `actor.activation`, which has nothing to do with the arm."""


class ParityError(FlowMBPOError):
    """Two configs that are no strict comparison."""

    kind = "parity"


@dataclass(frozen=True)
class Comparison:
    """Sizes, costs and differences of two configs, a and b. `allowed` are keys admitted beside `INTENDED`."""

    sizes: Parity
    cost_a: ComputeCost
    cost_b: ComputeCost
    intended: tuple[Difference, ...]
    unintended: tuple[Difference, ...]
    allowed: tuple[str, ...]

    @property
    def comparable(self) -> bool:
        """Whether sizes are within the limit and nothing differs that should not."""
        return self.sizes.within and not self.unintended

    def check(self) -> None:
        """Raises ParityError naming every key that differs unintended and every part of another size."""
        if self.comparable:
            return
        findings = [str(difference) for difference in self.unintended]
        for part in (self.sizes.model, self.sizes.actor):
            gap = part.gap_percent
            if gap is None or abs(gap) > LARGEST_GAP_PERCENT:
                shown = ("" if gap is None else f", {gap:+.1f}%") + f" (at most {LARGEST_GAP_PERCENT:g}%)"
                findings.append(f"{part.part} parameters: {part.a:,} -> {part.b:,}{shown}")
        listed = "\n".join(f"  {finding}" for finding in findings)
        raise ParityError(
            f"'{self.sizes.a}' and '{self.sizes.b}' differ in more than the compared parts:\n{listed}\n"
            "Make them equal, or admit a key with --allow KEY; a gap in size is closed by parity: true."
        )

    def to_dict(self) -> dict[str, Any]:
        """The JSON document: `Parity`'s keys, costs with their ratio b / a, and the differences."""
        a, b = self.cost_a.to_dict(), self.cost_b.to_dict()
        ratio: dict[str, Any] = {key: b[key] / a[key] for key in ("nfe", "actor_nfe", "compute_index")}
        ratio["flops"] = {key: b["flops"][key] / flops for key, flops in a["flops"].items()}
        return self.sizes.to_dict() | {
            "compute": {"a": a, "b": b, "ratio": ratio},
            "differences": {"intended": plain(self.intended), "unintended": plain(self.unintended)},
            "allowed": list(self.allowed),
            "comparable": self.comparable,
        }


def compare(
    a: ExperimentConfig, b: ExperimentConfig, spec_a: EnvSpec, spec_b: EnvSpec, allowed: Sequence[str] = ()
) -> Comparison:
    """Build, count and probe both. `allowed` are dotted keys or sections that may differ too.

    Raises ConfigError for an allowed key that no config has.
    """
    known = dotted_keys(ExperimentConfig)
    for key in allowed:
        if key not in known:
            hint = nearest(key, known) or " See `flowmbpo presets show NAME` for the keys."
            raise ConfigError(f"--allow {key}: no key or section of a config.{hint}")

    def admitted(key: str) -> bool:
        if key == "actor.activation" and key not in allowed:
            return False
        return any(key == each or key.startswith(f"{each}.") for each in (*INTENDED, *allowed))

    differences = config_differences(a, b)
    return Comparison(
        sizes=parity((a.name, build_meta_agent(a, spec_a)), (b.name, build_meta_agent(b, spec_b))),
        cost_a=estimate_cost(a, spec_a),
        cost_b=estimate_cost(b, spec_b),
        intended=tuple(d for d in differences if admitted(d.key)),
        unintended=tuple(d for d in differences if not admitted(d.key)),
        allowed=tuple(allowed),
    )
