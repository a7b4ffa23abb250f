"""The value function against what the policy really earns, and against its own targets.

Letters: S judged states, M members of the ensemble.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from flowmbpo.diagnostics.health.consistency import Consistency, measure_consistency
from flowmbpo.diagnostics.health.finding import Check, Finding
from flowmbpo.diagnostics.health.history import History, declared_fixed, read_history
from flowmbpo.diagnostics.health.monte_carlo import MonteCarlo, judge_values
from flowmbpo.diagnostics.interface import Effort
from flowmbpo.diagnostics.statistics import fit_line
from flowmbpo.diagnostics.subject import Subject
from flowmbpo.training import updates
from flowmbpo.training.returns import td_lambda

STARTS = 256  # states whose TD(lambda) targets are imagined

# Spread of V over that of its targets: healthy runs 0.90 to 1.11. A constant V has 0; one shrunk to a hundredth has up
# to 0.15, because the rewards within the horizon still make the targets vary; to a twentieth up to 0.5.
SMALLEST_TARGET_RATIO = 0.2
LOW_TARGET_RATIO = 0.6  # suspicious, and enough where V does not vary with real returns either
LOW_RETURN_RATIO = 0.1  # of real returns' spread; healthy runs: 0.12 to 1.35
SMALLEST_MEMBER = 0.25  # of the liveliest member's spread; healthy runs: 0.88 and more
SMALLEST_MEMBER_GRADIENT = 0.01  # of the steepest member's; healthy runs: 0.83 and more
SMALLEST_RETURN_SPREAD = 1e-3  # of the returns' size; below it no spread can be judged
CONSTANT = 1e-6  # of the values' or the targets' size: rounding; the youngest healthy critic (10 epochs): 4e-5
# (slope, residual) of Consistency, by how far the critic's weights have come. Sound ones that have settled: 0.83 and
# more, up to 0.48. One that moves falls behind for some epochs when the policy changes: 0.20, 0.86. Large values that
# are still growing hold next to nothing of the rewards of one horizon: -0.01 and more, up to 1.01.
SETTLED = (0.35, 0.7)
MOVING = (-0.1, 0.95)
SETTLED_TRAVEL = 0.3
LOW_TARGET_SPREAD = 0.35  # a young value of full travel that varies by more has learnt something else than its targets
FULL_TRAVEL = 0.7  # of what Adam can have moved a weight by; young healthy critics: 0.97 and more
OFF_SIZES = 1.0  # of the returns' size between value and returns is worth knowing; healthy runs: up to 0.76
BROKEN_SIZES = 5.0


@dataclass(frozen=True)
class Imagined:
    """Every member's value at start states, the TD(lambda) targets there, and |d V_m / d z| (mean over states).

    `rewards` is the part of the targets that is made of rewards alone.
    """

    values: Float[Tensor, "M S"]
    value: Float[Tensor, " S"]
    targets: Float[Tensor, " S"]
    rewards: Float[Tensor, " S"]
    slopes: Float[Tensor, " M"]

    @property
    def ratio(self) -> float:
        """Spread of the value over that of its targets; nan where the targets do not vary."""
        return _ratio(float(self.value.std()), float(self.targets.std()))

    @property
    def varies(self) -> bool:
        """Whether the value differs over states by more than rounding."""
        size = max(float(self.value.square().mean().sqrt()), float(self.targets.std()))
        return float(self.value.std()) > CONSTANT * size

    @property
    def consistency(self) -> Consistency:
        """The values against the rewards within the horizon."""
        return measure_consistency(self.values, self.targets, self.rewards)


def imagine_values(subject: Subject, count: int) -> Imagined:
    """Values and targets of `count` start states, drawn and imagined as training does."""
    agent = subject.agent
    config = subject.config.training.model_copy(update={"noise_replicas": 1})
    generator = subject.generator("critic")
    start, context = subject.starts(count, generator)
    with torch.no_grad():  # targets carry no gradient in training either
        objective = updates.actor_objective(agent, start, context, config, generator)
        _, _, targets = updates.critic_targets(agent, objective, config)
        path = objective.imagination
        no_values = torch.zeros_like(path.rewards)
        rewards = td_lambda(path.rewards, no_values, path.continues, objective.gamma, config.lam)[0]
    z = agent.world_model.latent(start).detach().requires_grad_()
    values = agent.critic(z, context)
    slopes = []
    for member in values:
        found = None
        if member.requires_grad:
            (found,) = torch.autograd.grad(member.sum(), z, retain_graph=True, allow_unused=True)
        slopes.append(torch.zeros(()) if found is None else found.norm(dim=-1).mean().cpu())
    with torch.no_grad():  # figures of a trained critic
        value = agent.critic.value(z, context)
    return Imagined(values.detach(), value, targets[:count], rewards, torch.stack(slopes))


def check_critic(subject: Subject, effort: Effort) -> Check:
    """Spread, level and correlation of V against Monte-Carlo returns of fresh sampled episodes; every member alive."""
    del effort
    judged = judge_values(subject, subject.episodes)
    imagined = imagine_values(subject, STARTS)
    consistency = imagined.consistency
    history = read_history(subject, "critic", "critic")
    frozen = _frozen_tensors(subject)
    fit = fit_line(judged.value, judged.returns)
    figures: dict[str, Any] = {
        "states": len(judged.returns),
        "value_mean": float(judged.value.mean()),
        "return_mean": float(judged.returns.mean()),
        "value_spread": float(judged.value.std()),
        "return_spread": float(judged.returns.std()),
        "spread_over_returns": _ratio(float(judged.value.std()), float(judged.returns.std())),
        "spread_over_targets": imagined.ratio,
        "correlation": fit.correlation,
        "slope": fit.slope,
        "offset_over_size": judged.offset,
        "rewards_accounted_for": {"slope": consistency.slope, "standard_error": consistency.error},
        "residual_over_targets": consistency.residual,
        "output_travel": output_travel(subject),
        "member_spreads": imagined.values.std(-1).tolist(),
        "member_gradients": imagined.slopes.tolist(),
        "bootstrapped_share": judged.bootstrap,
        "untrained_tensors": sorted({*history.idle, *history.initial}),
        "frozen_tensors": frozen,
    }
    findings = [
        *value_findings(subject, imagined, judged),
        *member_findings(imagined),
        *_history_findings(history, frozen),
        *_level_findings(judged),
    ]
    curves = {"value": judged.value.tolist(), "return": judged.returns.tolist()}
    return Check("critic", figures, tuple(findings), curves)


def output_travel(subject: Subject) -> float | None:
    """RMS change of the critic's output weights, over the farthest that Adam can have taken them (updates x rate).

    Close to 1 in a young critic, whose every step still goes the same way; it falls once the critic has arrived.
    None where it is not known: no epochs behind it, or initial weights that are neither zero nor at hand.
    """
    training = subject.config.training
    updates_done = subject.origin.epoch * training.rounds * training.critic_iterations * training.critic_batches
    now = subject.agent.critic.network.weights[-1].detach()
    if subject.initial is not None:
        before = subject.initial().critic.network.weights[-1].detach().to(now)
    elif subject.config.critic.zero_init:
        before = torch.zeros_like(now)
    else:
        return None
    farthest = updates_done * training.critic_lr
    return float((now - before).square().mean().sqrt()) / farthest if farthest > 0.0 else None


def value_findings(subject: Subject, imagined: Imagined, judged: MonteCarlo | None) -> list[Finding]:
    """Whether the value varies as its targets do, and holds the rewards that lie between them."""
    by_spread = spread_findings(subject, imagined, judged)
    if any(finding.severity == "broken" for finding in by_spread):
        return by_spread
    return consistency_findings(subject, imagined.consistency) or by_spread


def consistency_findings(subject: Subject, consistency: Consistency) -> list[Finding]:
    """A value that holds too little of the rewards within the horizon, something else, or many times as much.

    One that holds little, but whose weights have gone as far as they could, is young and not dead: a note.
    """
    figures = {"slope": consistency.slope, "slope_error": consistency.error, "residual": consistency.residual}
    measured = (
        f"Over one horizon the value accounts for {consistency.slope:.2g} (standard error {consistency.error:.2g}) of "
        "the imagined rewards (healthy: 0.45 to 1.25), and leaves "
        f"{consistency.residual:.2g} of its targets' spread unexplained (healthy: up to 0.5)"
    )
    if consistency.too_large:
        message = (
            f"{measured}: it is many times what the rewards come to. Its weights are not those that were trained, or "
            "the reward's scale changed under it."
        )
        return [Finding("critic-off", "broken", message, figures)]
    if not consistency.below(SETTLED[0]) and not consistency.leaves(SETTLED[1]):
        return []
    travel = output_travel(subject)  # only now: it may have to build the agent that the run began with
    slope, residual = SETTLED if travel is not None and travel < SETTLED_TRAVEL else MOVING
    if not consistency.below(slope) and not consistency.leaves(residual):
        return []
    growing = 0.0 < consistency.spread < LOW_TARGET_SPREAD and not consistency.below(slope)
    if travel is not None and travel > FULL_TRAVEL and growing:
        message = f"{measured}, but its weights still move at full speed: it needs more updates."
        return [Finding("critic-young", "note", message, figures)]
    message = (
        f"{measured}: the critic does not tell good states from bad ones. Look at its last layer, its learning rate "
        "and its optimiser."
    )
    return [Finding("dead-critic", "broken", message, figures)]


def spread_findings(subject: Subject, imagined: Imagined, judged: MonteCarlo | None) -> list[Finding]:
    """A value that hardly varies while its targets (and, where episodes were run, real returns) do.

    One that varies a little, and whose weights have gone as far as they could, is young and not dead: a note.
    """
    target_ratio = imagined.ratio
    return_ratio = math.nan
    if judged is not None and float(judged.returns.std()) > SMALLEST_RETURN_SPREAD * judged.size:
        return_ratio = _ratio(float(judged.value.std()), float(judged.returns.std()))
    flat = target_ratio < SMALLEST_TARGET_RATIO
    if not flat and not (target_ratio < LOW_TARGET_RATIO and return_ratio < LOW_RETURN_RATIO):
        return []
    figures = {"spread_over_targets": target_ratio, "spread_over_returns": return_ratio}
    real = "" if math.isnan(return_ratio) else f", and {return_ratio:.2g} of what real returns vary by"
    measured = (
        f"The value varies over states by {target_ratio:.2g} of what its own targets vary by (healthy: 0.9 to 1.1)"
    )
    travel = output_travel(subject)
    if travel is not None and travel > FULL_TRAVEL and imagined.varies:
        message = f"{measured}{real}, but its weights still move at full speed: it needs more updates."
        return [Finding("critic-young", "note", message, figures)]
    return [
        Finding(
            "dead-critic",
            "broken",
            f"{measured}{real}: the critic hardly tells good states from bad ones. Look at its last layer, its "
            "learning rate and its optimiser.",
            figures,
        )
    ]


def member_findings(imagined: Imagined) -> list[Finding]:
    """Members that do not vary, or pass no gradient to the latent, while others do."""
    spreads, slopes = imagined.values.std(-1), imagined.slopes
    flat = (spreads < SMALLEST_MEMBER * spreads.max()).nonzero().flatten().tolist()
    cut = (slopes < SMALLEST_MEMBER_GRADIENT * slopes.max()).nonzero().flatten().tolist()
    if bool((slopes == 0.0).all()) and bool((spreads > 0.0).any()):
        cut = list(range(len(slopes)))
    dead = sorted({*flat, *cut})
    if not dead:
        return []
    shown = ", ".join(f"{spread:.3g}" for spread in spreads.tolist())
    return [
        Finding(
            "dead-critic",
            "broken",
            f"Of the critic's {len(spreads)} members, {', '.join(map(str, dead))} (counted from 0) are dead: their "
            f"values hardly vary over states where others do (spreads, in order: {shown}), or pass no gradient on.",
            {"dead_members": float(len(dead))},
        )
    ]


def _ratio(x: float, y: float) -> float:
    return x / y if y > 0.0 else math.nan


def _frozen_tensors(subject: Subject) -> list[str]:
    fixed = declared_fixed(subject, "critic")
    return [n for n, p in subject.agent.critic.named_parameters() if not p.requires_grad and n not in fixed]


def _history_findings(history: History, frozen: list[str]) -> list[Finding]:
    untrained = sorted({*history.idle, *history.initial})
    findings = []
    if frozen:
        message = (
            f"{len(frozen)} tensors of the critic are set not to learn (requires_grad is off): {', '.join(frozen[:4])}."
        )
        findings.append(Finding("dead-critic", "broken", message, {"frozen_tensors": float(len(frozen))}))
    if history.stopped:
        message = "The learning rate of the critic's saved optimiser is 0: the critic stands still."
        findings.append(Finding("dead-critic", "broken", message, {"learning_rate": 0.0}))
    if not untrained and not history.unlisted:
        return findings
    return [
        *findings,
        Finding(
            "dead-critic",
            "broken",
            f"{len(untrained) + history.unlisted} of the critic's {history.trainable} tensors were never trained "
            "(unknown to the saved optimiser, without moments, or still at their initial values)"
            + (f": {', '.join(untrained[:4])}." if untrained else "."),
            {"untrained_tensors": float(len(untrained) + history.unlisted)},
        ),
    ]


def _level_findings(judged: MonteCarlo) -> list[Finding]:
    if abs(judged.offset) <= OFF_SIZES:
        return []
    return [
        Finding(
            "critic-off",
            "broken" if abs(judged.offset) > BROKEN_SIZES else "note",
            f"The value is {float(judged.value.mean()):.3g} on average where the policy really earns "
            f"{float(judged.returns.mean()):.3g} (discounted, in learning rewards; {judged.bootstrap:.0%} of it "
            "bootstrapped): the policy exploits its model, the critic feeds on itself, or the reward's scale is wrong.",
            {"offset_over_size": judged.offset},
        )
    ]
