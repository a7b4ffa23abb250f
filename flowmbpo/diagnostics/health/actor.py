"""Does the gradient of the imagined return reach the actor, whole and of a useful size?"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch

from flowmbpo.diagnostics.effort import Effort
from flowmbpo.diagnostics.health.finding import Check, Finding
from flowmbpo.diagnostics.health.history import History, declared_fixed, read_history
from flowmbpo.diagnostics.health.objective import ActorObjective, Sensitivity, Slope
from flowmbpo.diagnostics.subject import Subject
from flowmbpo.training import updates

SLOPE_ROWS = 8  # the comparison is exact at any number of start states
SENSITIVITY_ROWS = 64
HISTORY_DRAWS = 4

# Healthy runs stay below 2e-6 overall and 2e-4 within one tensor: float64 leaves only the difference's own error.
LARGEST_MISMATCH = 0.01
LARGEST_TENSOR_MISMATCH = 0.05
JUDGED_SHARE = 1e-3  # of the whole slope; below it a tensor's own slope is not judged
SMALLEST_SENSITIVITY = 1e-4  # healthy runs: 1e-2 to 0.5 spreads of the return per unit of action
NO_SENSITIVITY = 1e-7
LARGEST_SENSITIVITY = 1e2
LARGEST_GROWTH = 1e3  # healthy runs: 0.6 to 16 over the horizon
SMALLEST_HISTORY = 0.15  # healthy runs: 0.66 to 3.0


@dataclass(frozen=True)
class Match:
    """Autograd's slopes against finite differences: the share that is wrong, and the share that arrives."""

    mismatch: float
    arrives: float
    size: float
    wrong: list[str]

    @classmethod
    def of(cls, slopes: list[Slope]) -> Match:
        """`arrives` is 1 where autograd is right, 0 where the gradient is cut, 1e-3 where it is scaled by that."""
        size = math.sqrt(sum(slope.difference**2 for slope in slopes))
        error = math.sqrt(sum((slope.autograd - slope.difference) ** 2 for slope in slopes))
        if size == 0.0:
            return cls(0.0 if error == 0.0 else math.inf, 1.0 if error == 0.0 else math.inf, size, [])
        arrives = sum(slope.autograd * slope.difference for slope in slopes) / size**2
        wrong = [slope.tensor for slope in slopes if _wrong(slope, size)]
        return cls(error / size, arrives, size, wrong)


def _wrong(slope: Slope, size: float) -> bool:
    largest = max(abs(slope.autograd), abs(slope.difference))
    return largest > JUDGED_SHARE * size and abs(slope.autograd - slope.difference) > LARGEST_TENSOR_MISMATCH * largest


def check_actor(subject: Subject, effort: Effort) -> Check:
    """Autograd against finite differences, gradients through the horizon, and what the optimiser remembers."""
    del effort  # exact on few rows
    fixed = declared_fixed(subject, "actor")
    frozen = _frozen_tensors(subject)
    match = Match.of(ActorObjective(subject, SLOPE_ROWS, "actor slopes").slopes(fixed))
    sensitivity = ActorObjective(subject, SENSITIVITY_ROWS, "actor sensitivity").sensitivity()
    history = read_history(subject, "actor", "actor")
    share = _remembered_share(subject, history)
    findings = [
        *reach_findings(match, subject),
        *size_findings(sensitivity),
        *_history_findings(history, share),
    ]
    figures: dict[str, Any] = {
        "gradient_mismatch": match.mismatch,
        "gradient_arrives": match.arrives,
        "wrong_tensors": match.wrong,
        "frozen_tensors": frozen,
        "sensitivity": sensitivity.relative,
        "growth_through_horizon": sensitivity.growth,
        "action_gradient_norms": sensitivity.norms,
        "imagined_return_mean": float(sensitivity.returns.mean()),
        "imagined_return_spread": sensitivity.spread,
        "untrained_tensors": sorted({*history.idle, *history.initial}),
        "saved_over_measured_gradient": share,
    }
    return Check("actor", figures, tuple(findings), {"action_gradient_norms": sensitivity.norms})


def size_findings(sensitivity: Sensitivity) -> list[Finding]:
    """Findings on the size of d return / d action."""
    relative, growth = sensitivity.relative, sensitivity.growth
    figures = {"sensitivity": relative, "growth_through_horizon": growth}
    if relative < NO_SENSITIVITY:
        return [
            Finding(
                "actor-without-gradient",
                "broken",
                "The imagined return does not depend on the actions: reward head, dynamics and critic give the actor "
                "no gradient at all. Look at the reward head first.",
                figures,
            )
        ]
    if relative < SMALLEST_SENSITIVITY:
        return [
            Finding(
                "actor-gradient-vanishes",
                "broken",
                f"An action moves the imagined return by {relative:.2g} of its spread over start states (healthy: 0.01 "
                "and more): the actor learns nothing. Look at the reward head, the dynamics and the critic.",
                figures,
            )
        ]
    if relative > LARGEST_SENSITIVITY or growth > LARGEST_GROWTH or not math.isfinite(relative):
        return [
            Finding(
                "actor-gradient-explodes",
                "broken",
                f"The gradient of the return to the first action is {growth:.3g} times that to the last, and "
                f"{relative:.3g} spreads of the return per unit of action: a few start states drown the others. "
                "Shorten training.horizon or penalise the dynamics' Jacobian (model.dynamics.jacobian_penalty).",
                figures,
            )
        ]
    return []


def reach_findings(match: Match, subject: Subject) -> list[Finding]:
    """Findings on what lies between the objective and the actor's weights."""
    frozen = _frozen_tensors(subject)
    mode = subject.config.training.actor_input_gradient
    findings = []
    if match.mismatch > LARGEST_MISMATCH or match.wrong:
        where = f" Wrong in {', '.join(match.wrong[:4])}." if match.wrong else ""
        findings.append(
            Finding(
                "actor-without-gradient",
                "broken",
                f"The actor gets {match.arrives:.3g} of the gradient that finite differences of its objective show "
                f"(actor_input_gradient: {mode}; 1 is right).{where} Look for a detach, no_grad, hook or scaling "
                "between the objective and the actor.",
                {"gradient_arrives": match.arrives, "gradient_mismatch": match.mismatch},
            )
        )
    if frozen:
        findings.append(
            Finding(
                "actor-without-gradient",
                "broken",
                f"{len(frozen)} tensors of the actor are set not to learn (requires_grad is off): "
                f"{', '.join(frozen[:4])}.",
                {"frozen_tensors": float(len(frozen))},
            )
        )
    return findings


def _frozen_tensors(subject: Subject) -> list[str]:
    fixed = declared_fixed(subject, "actor")
    return [n for n, p in subject.agent.actor.named_parameters() if not p.requires_grad and n not in fixed]


def _history_findings(history: History, share: float | None) -> list[Finding]:
    untrained = sorted({*history.idle, *history.initial})
    findings = []
    if untrained or history.unlisted:
        names = f": {', '.join(untrained[:4])}" if untrained else ""
        findings.append(
            Finding(
                "actor-without-gradient",
                "broken",
                f"{len(untrained) + history.unlisted} of the actor's {history.trainable} tensors were never trained "
                f"(unknown to the saved optimiser, without moments, or still at their initial values){names}.",
                {"untrained_tensors": float(len(untrained) + history.unlisted)},
            )
        )
    elif share is not None and share < SMALLEST_HISTORY:
        findings.append(
            Finding(
                "actor-without-gradient",
                "broken",
                f"The gradients that the actor's optimiser remembers are {share:.2g} of those measured now at the same "
                "weights (healthy: 0.7 to 3): during training most of the gradient never arrived.",
                {"saved_over_measured_gradient": share},
            )
        )
    return findings


def _remembered_share(subject: Subject, history: History) -> float | None:
    """RMS gradient norm in Adam's memory over that of fresh updates; None where either is missing or zero."""
    if not history.gradient_rms:
        return None
    norms = torch.tensor([_update_norm(subject, f"actor update {draw}") for draw in range(HISTORY_DRAWS)])
    measured = float(norms.square().mean().sqrt())
    return history.gradient_rms / measured if measured > 0.0 else None


def _update_norm(subject: Subject, purpose: str) -> float:
    """Norm, after clipping, of the gradient that `update_actor` would step on."""
    agent, config = subject.agent, subject.config.training
    generator = subject.generator(purpose)
    start, context = subject.starts(subject.batch_size, generator)
    parameters = [parameter for parameter in agent.actor.parameters() if parameter.requires_grad]
    if not parameters:
        return 0.0
    with updates.frozen(agent.world_model, agent.critic):
        objective = updates.actor_objective(agent, start, context, config, generator)
        loss = updates.actor_loss(agent, objective, start, context, config, generator)
        if not loss.requires_grad:
            return 0.0
        gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
    norm = math.sqrt(sum(float(gradient.double().square().sum()) for gradient in gradients if gradient is not None))
    return norm if config.clip.actor is None else min(norm, config.clip.actor)
