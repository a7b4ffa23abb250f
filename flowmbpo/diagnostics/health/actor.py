"""Does the gradient of the imagined return reach the actor, whole and of a useful size?"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch

from flowmbpo.diagnostics.health.finding import Check, Finding
from flowmbpo.diagnostics.health.history import History, declared_fixed, read_history
from flowmbpo.diagnostics.health.objective import ActorObjective, Sensitivity, Slope
from flowmbpo.diagnostics.interface import Effort
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
LOST_GRADIENT = 1e-3  # of what the optimiser remembers of one tensor's; healthy runs: 0.15 and more
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
    fresh = _fresh_gradients(subject) if history.gradients else {}
    share = _remembered_share(history, fresh)
    lost = [name for name, norm in history.gradients.items() if not fresh.get(name, 0.0) >= LOST_GRADIENT * norm]
    findings = [
        *reach_findings(match, subject),
        *size_findings(sensitivity),
        *_history_findings(history, share, lost),
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
        "tensors_that_lost_their_gradient": lost,
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


def _history_findings(history: History, share: float | None, lost: list[str]) -> list[Finding]:
    untrained = sorted({*history.idle, *history.initial})
    findings = []
    if history.stopped:
        message = "The learning rate of the actor's saved optimiser is 0: the actor stands still."
        findings.append(Finding("actor-without-gradient", "broken", message, {"learning_rate": 0.0}))
    if lost:
        message = (
            f"{len(lost)} of the actor's {history.trainable} tensors got a gradient in training and get none now: "
            f"{', '.join(lost[:4])}. Weights behind them are zero, or what they feed is cut off or saturated."
        )
        findings.append(Finding("actor-without-gradient", "broken", message, {"lost_tensors": float(len(lost))}))
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


def _remembered_share(history: History, fresh: dict[str, float]) -> float | None:
    """RMS gradient norm in Adam's memory over that of fresh updates; None where either is missing or zero."""
    measured = math.hypot(*fresh.values()) if fresh else 0.0
    remembered = history.gradient_rms
    return None if remembered is None or measured == 0.0 else remembered / measured


def _fresh_gradients(subject: Subject) -> dict[str, float]:
    """By tensor, the RMS norm over draws of the gradient, after clipping, that `update_actor` would step on."""
    squares: dict[str, float] = {}
    for draw in range(HISTORY_DRAWS):
        for name, square in _update_squares(subject, f"actor update {draw}").items():
            squares[name] = squares.get(name, 0.0) + square / HISTORY_DRAWS
    return {name: math.sqrt(square) for name, square in squares.items()}


def _update_squares(subject: Subject, purpose: str) -> dict[str, float]:
    """Squared norms, by tensor, of the clipped gradient of one actor update."""
    agent, config = subject.agent, subject.config.training
    generator = subject.generator(purpose)
    start, context = subject.starts(subject.batch_size, generator)
    parameters = {name: parameter for name, parameter in agent.actor.named_parameters() if parameter.requires_grad}
    if not parameters:
        return {}
    with updates.frozen(agent.world_model, agent.critic):
        objective = updates.actor_objective(agent, start, context, config, generator)
        loss = updates.actor_loss(agent, objective, start, context, config, generator)
        if not loss.requires_grad:
            return {}
        gradients = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
    squares = {
        name: 0.0 if gradient is None else float(gradient.double().square().sum())
        for name, gradient in zip(parameters, gradients, strict=True)
    }
    total, clip = sum(squares.values()), config.clip.actor
    scale = 1.0 if clip is None or total <= clip**2 else clip**2 / total
    return {name: scale * square for name, square in squares.items()}
