"""The health checks that a run makes of itself: replayed experience and imagination, no environment."""

from __future__ import annotations

import torch

from flowmbpo.diagnostics.health.actor import Match, reach_findings, size_findings
from flowmbpo.diagnostics.health.critic import imagine_values, member_findings, value_findings
from flowmbpo.diagnostics.health.finding import Finding
from flowmbpo.diagnostics.health.history import declared_fixed
from flowmbpo.diagnostics.health.objective import ActorObjective
from flowmbpo.diagnostics.health.policy import measure_saturation, saturation_findings
from flowmbpo.diagnostics.health.reward import fit_rewards, predict_real_reward
from flowmbpo.diagnostics.health.weights import check_weights
from flowmbpo.diagnostics.interface import Effort
from flowmbpo.diagnostics.subject import Subject

SLOPE_ROWS = 4
SENSITIVITY_ROWS = 16
STATES = 256
FLAT = 0.05  # of the real rewards' spread; healthy heads: 0.8 and more


def light_health(subject: Subject, effort: Effort) -> list[Finding]:
    """What is broken as far as it shows without real episodes, in some tens of milliseconds for a small model.

    Judged by the thresholds of `measure_health`, on at least 256 states. Weights that are not finite end it.
    """
    weights = check_weights(subject, effort)
    if not weights.figures["finite"]:
        return list(weights.findings)
    found = _reward_findings(subject)
    if subject.trains_policy:
        found += _policy_findings(subject, effort)
    return [*weights.findings, *(finding for finding in found if finding.severity == "broken")]


def _policy_findings(subject: Subject, effort: Effort) -> list[Finding]:
    """Of actor and critic, in the run's own imagination."""
    imagined = imagine_values(subject, max(effort.windows, STATES))
    slope = ActorObjective(subject, SLOPE_ROWS, "light slope").slopes(declared_fixed(subject, "actor"), joint=True)
    sensitivity = ActorObjective(subject, SENSITIVITY_ROWS, "light sensitivity").sensitivity()
    return [
        *reach_findings(Match.of(slope), subject),
        *size_findings(sensitivity),
        *value_findings(subject, imagined, None),
        *member_findings(imagined),
        *saturation_findings(measure_saturation(subject, max(effort.windows, STATES))),
    ]


@torch.no_grad()  # predictions are looked at, nothing is learnt
def _reward_findings(subject: Subject) -> list[Finding]:
    batch = subject.windows.sample(STATES, 1, subject.generator("light reward"))
    state, context = subject.encode(batch.obs[0], batch.task)
    predicted = predict_real_reward(subject, subject.agent.world_model.latent(state), batch.action[0], context)
    fit = fit_rewards(batch.reward[0], predicted, batch.reward[0])
    if not fit.varies or fit.spread_ratio >= FLAT:
        return []
    message = (
        f"On replayed transitions the predicted reward varies by {fit.spread_ratio:.2g} of what the real one varies "
        "by: the actor has nothing to follow. `flowmbpo diagnose health` says more."
    )
    return [Finding("flat-reward-head", "broken", message, {"spread_ratio": fit.spread_ratio})]
