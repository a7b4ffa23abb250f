"""How much of the policy sits in the flat ends of its tanh, where it can no longer learn.

Letters: S states, A action.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from flowmbpo.diagnostics.health.finding import Check, Finding
from flowmbpo.diagnostics.interface import Effort
from flowmbpo.diagnostics.subject import Subject

STATES = 512
SATURATED = 0.99
DEEP = math.tanh(7.0)  # 1 - a^2 is 3e-6 there: no gradient to speak of; float32 still tells it from 1

LARGEST_DEEP_SHARE = 0.1  # healthy runs: 0.00, bang-bang ones included; output layer times 30: 0.06 to 1.00
SMALLEST_SLOPE = 0.003  # of one dimension; healthy runs: 0.02 and more, where |u| is 2.7 on average
LOST_SHARE = 0.5  # of the states in which a dimension lies beyond tanh(7)
NOTED_SHARE = 0.85


@dataclass(frozen=True)
class Saturation:
    """Sampled actions over replayed states, per action dimension.

    `share` of states with |a| > 0.99, `deep` with |a| > tanh(7), `slope` the mean derivative 1 - a^2 of the
    tanh, `stuck` the share of states in which the dimension is saturated with its more frequent sign.
    """

    share: Float[Tensor, " A"]
    deep: Float[Tensor, " A"]
    slope: Float[Tensor, " A"]
    stuck: Float[Tensor, " A"]


@torch.no_grad()  # what the policy does is measured, not changed
def measure_saturation(subject: Subject, states: int) -> Saturation:
    """Saturation at `states` states as training would start from, noise included."""
    agent = subject.agent
    generator = subject.generator("policy")
    start, context = subject.starts(states, generator)
    action = agent.actor(agent.world_model.latent(start), context, generator)
    mask = context.action_mask
    having = mask.sum(0).clamp(min=1.0)
    deep = ((action.abs() > DEEP) * mask).sum(0) / having
    high = ((action > SATURATED) * mask).sum(0) / having
    low = ((action < -SATURATED) * mask).sum(0) / having
    slope = ((1.0 - action.square()) * mask).sum(0) / having
    used = mask.sum(0) > 0
    return Saturation((high + low)[used], deep[used], slope[used], torch.maximum(high, low)[used])


def check_policy(subject: Subject, effort: Effort) -> Check:
    """Share of saturated actions, the tanh's slope, and dimensions that never move."""
    del effort
    saturation = measure_saturation(subject, STATES)
    figures: dict[str, Any] = {
        "saturated_share": float(saturation.share.mean()),
        "deeply_saturated_share": float(saturation.deep.mean()),
        "tanh_slope": float(saturation.slope.mean()),
        "stuck_share": float(saturation.stuck.max()),
        "saturated_share_per_dimension": saturation.share.tolist(),
        "tanh_slope_per_dimension": saturation.slope.tolist(),
        "stuck_share_per_dimension": saturation.stuck.tolist(),
    }
    return Check("policy", figures, tuple(saturation_findings(saturation)))


def saturation_findings(saturation: Saturation) -> list[Finding]:
    """A policy, or single dimensions of it, so far out in its tanh that no gradient comes back."""
    share, deep, slope = (float(x.mean()) for x in (saturation.share, saturation.deep, saturation.slope))
    lost = ((saturation.deep > LOST_SHARE) | (saturation.slope < SMALLEST_SLOPE)).nonzero().flatten().tolist()
    figures = {
        "saturated_share": share,
        "deeply_saturated_share": deep,
        "tanh_slope": slope,
        "lost_dimensions": float(len(lost)),
    }
    advice = "No gradient passes the tanh there; raise training.preactivation_penalty or lower training.actor_lr."
    if deep > LARGEST_DEEP_SHARE:
        message = (
            f"{deep:.0%} of all sampled actions lie beyond tanh(7) (healthy: 0%) and {share:.0%} beyond 0.99; the mean "
            f"slope of the tanh is {slope:.2g}. {advice}"
        )
    elif lost:
        named = ", ".join(map(str, lost))
        message = (
            f"Action dimensions {named} (counted from 0) sit at the ends of their range: the slope of their tanh is "
            f"{float(saturation.slope.min()):.2g} on average (healthy: 0.02 and more). {advice}"
        )
    elif share > NOTED_SHARE:
        message = f"{share:.0%} of all sampled actions lie beyond 0.99: a bang-bang policy, or one about to get stuck."
        return [Finding("policy-nearly-saturated", "note", message, figures)]
    else:
        return []
    return [Finding("saturated-policy", "broken", message, figures)]
