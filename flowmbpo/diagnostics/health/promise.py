"""What the model promises the policy over a horizon, and what the environment pays it from the same states.

Letters: H horizon, W windows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from flowmbpo.diagnostics.health.finding import Check, Finding
from flowmbpo.diagnostics.interface import Effort
from flowmbpo.diagnostics.statistics import Interval, mean_interval
from flowmbpo.diagnostics.subject import Subject
from flowmbpo.training.imagination import imagine
from flowmbpo.training.updates import discount

NOTED_SIZES = 0.5  # of the real return's size between the two means
BROKEN_SIZES = 5.0


@dataclass(frozen=True)
class Promise:
    """Discounted rewards of `horizon` steps in real units: imagined and earned, from the same real states."""

    imagined: Float[Tensor, " W"]
    earned: Float[Tensor, " W"]
    horizon: int

    @property
    def size(self) -> float:
        """Root mean square of the real returns."""
        return max(float(self.earned.square().mean().sqrt()), 1e-12)


@torch.no_grad()  # two returns are compared, nothing is learnt
def measure_promise(subject: Subject, windows: int) -> Promise:
    """Windows of fresh episodes of the sampled policy against rollouts of the same policy in the model.

    A step after a real end earns nothing; the model has its termination head for that.
    """
    agent, config = subject.agent, subject.config.training
    generator = subject.generator("promise")
    batch = subject.episodes.sample(windows, config.horizon, generator)
    start, context = subject.encode(batch.obs[0], batch.task)
    rollout = imagine(agent.world_model, agent.actor, start, context, horizon=config.horizon, generator=generator)
    gamma = discount(context, config)
    weight = gamma ** torch.arange(config.horizon, device=gamma.device).unsqueeze(-1)
    alive = torch.cat([torch.ones_like(rollout.continues[:1]), rollout.continues[:-1].cumprod(0)])
    # A window that the time limit cuts short is compared over the steps that it has.
    running = batch.valid | (batch.terminated.cumsum(0) > 0)
    imagined = (weight * alive * agent.reward_normalizer.inverse(rollout.rewards) * running).sum(0)
    earned = (weight * batch.reward * batch.valid).sum(0)
    return Promise(imagined.double(), earned.double(), config.horizon)


def check_promise(subject: Subject, effort: Effort) -> Check:
    """Mean return over one training horizon in the model against the environment's."""
    promise = measure_promise(subject, effort.windows)
    gap: Interval = mean_interval(promise.imagined - promise.earned)
    off = gap.value / promise.size
    figures: dict[str, Any] = {
        "horizon": promise.horizon,
        "windows": len(promise.earned),
        "imagined_return": mean_interval(promise.imagined).to_dict(),
        "earned_return": mean_interval(promise.earned).to_dict(),
        "gap": gap.to_dict(),
        "gap_over_size": off,
    }
    findings = []
    certain = not gap.low <= 0.0 <= gap.high
    cause = "the policy exploits its model" if off > 0.0 else "the model misses what the policy is paid for"
    if certain and abs(off) > NOTED_SIZES:
        findings.append(
            Finding(
                "model-return-off",
                "broken" if abs(off) > BROKEN_SIZES else "note",
                f"Over {promise.horizon} steps the model promises the policy {float(promise.imagined.mean()):.3g} "
                f"where the environment pays {float(promise.earned.mean()):.3g} (real rewards, discounted): {cause}, "
                "or rewards are predicted in the wrong scale.",
                {"gap_over_size": off},
            )
        )
    return Check("promise", figures, tuple(findings))
