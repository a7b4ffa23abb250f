"""What the policy does: how much of it sits in the flat ends of its tanh, and how its episodes end."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from flowmbpo.diagnostics.health.probes import Figures
from flowmbpo.diagnostics.subject import Subject

STATES, LIGHT_STATES = 512, 256
SATURATED = 0.99
DEEP = math.tanh(7.0)  # 1 - a^2 is 3e-6 there: no gradient to speak of; float32 still tells it from 1
SMALLEST_SLOPE = 0.003  # of one dimension; healthy runs: 0.02 and more, where |u| is 2.7 on average
LOST_SHARE = 0.5  # of the states in which a dimension lies beyond tanh(7)
EARLY = 0.2  # of the time limit
GRACE = 0.2  # of the configured epochs: a policy that still learns to stand may fall


@torch.no_grad()  # what the policy does is measured, not changed
def measure_saturation(subject: Subject, *, light: bool = False) -> Figures:
    """Of sampled actions at states as training would start from, by action dimension; `light`: at fewer.

    Share of states with |a| > 0.99, deeply with |a| > tanh(7), and the mean derivative 1 - a^2 of the tanh.
    """
    agent = subject.agent
    generator = subject.generator("policy")
    start, context = subject.starts(LIGHT_STATES if light else STATES, generator)
    action = agent.actor(agent.world_model.latent(start), context, generator)
    mask = context.action_mask
    used, having = mask.sum(0) > 0, mask.sum(0).clamp(min=1.0)

    def mean(x: Tensor) -> Tensor:
        return ((x * mask).sum(0) / having)[used]

    deep, slope = mean(action.abs() > DEEP), mean(1.0 - action.square())
    return {
        "saturated_share": float(mean(action.abs() > SATURATED).mean()),
        "deeply_saturated_share": float(deep.mean()),
        "tanh_slope": float(slope.mean()),
        "smallest_tanh_slope": float(slope.min()),
        "lost_dimensions": ((deep > LOST_SHARE) | (slope < SMALLEST_SLOPE)).nonzero().flatten().tolist(),
    }


def measure_endings(subject: Subject) -> Figures:
    """How many fresh episodes of the sampled policy the task ends within a fifth of their time limit."""
    episodes = subject.episodes
    limits = torch.tensor([subject.agent.spec.tasks[int(task)].episode_length for task in episodes.task])
    length = episodes.length.cpu().double()
    early = episodes.terminated.cpu() & (length < EARLY * limits)
    young = subject.origin.epoch < GRACE * subject.config.training.epochs
    return {
        "episodes": len(length),
        "limit": float(limits.double().mean()),
        "ended_early": int(early.sum()),
        "ended_early_share": float(early.double().mean()),
        "ended_early_length": float(length[early].mean()) if bool(early.any()) else 0.0,
        "broken_episodes": int(episodes.broken.sum()),
        "young": young,
        "grown": not young,
    }
