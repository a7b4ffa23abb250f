"""Discounted returns of real episodes beside the critic's values.

Letters: T longest episode, N episodes, S judged states.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from flowmbpo.diagnostics.subject import Subject
from flowmbpo.evaluation.episodes import Episodes
from flowmbpo.training.updates import discount

MOST_STATES = 1024
LARGEST_BOOTSTRAP = 0.5  # share of a judged state's return that the critic's own value may make up
LEAST_SHARE = 0.25  # of an episode's states are judged however much is bootstrapped


@dataclass(frozen=True)
class MonteCarlo:
    """Values and Monte-Carlo returns of real states, in learning-reward units.

    `bootstrap` is the mean share gamma^(T - t) with which the critic's value of the last state enters (0 where
    the task ended itself).
    """

    value: Float[Tensor, " S"]
    returns: Float[Tensor, " S"]
    bootstrap: float

    @property
    def size(self) -> float:
        """Root mean square of the returns."""
        return max(float(self.returns.square().mean().sqrt()), 1e-12)

    @property
    def offset(self) -> float:
        """Mean of value minus return, in sizes."""
        return float((self.value - self.returns).mean()) / self.size


@torch.no_grad()  # figures of a trained critic
def judge_values(subject: Subject, episodes: Episodes) -> MonteCarlo:
    """V and returns at states spread evenly over the episodes.

    G_t = r_t + gamma G_{t+1} with learning rewards; G_T = V(z_T) at a time limit and 0 where the task ended.
    """
    agent = subject.agent
    returns, share = discounted_returns(subject, episodes)
    time, lane = _judged_states(episodes, share).nonzero(as_tuple=True)
    if len(time) > MOST_STATES:
        kept = torch.linspace(0, len(time) - 1, MOST_STATES, device=time.device).long()
        time, lane = time[kept], lane[kept]
    s, context = subject.encode(episodes.obs[time, lane], episodes.task[lane])
    value = agent.critic.value(agent.world_model.latent(s), context)
    return MonteCarlo(value, returns[time, lane].float(), float(share[time, lane].mean()))


@torch.no_grad()  # real returns, and the value behind a time limit
def discounted_returns(subject: Subject, episodes: Episodes) -> tuple[Float[Tensor, "T N"], Float[Tensor, "T N"]]:
    """G_t of every transition, and the share gamma^(T - t) of the bootstrap in it; float64."""
    agent = subject.agent
    last = episodes.length, torch.arange(len(episodes.length), device=episodes.length.device)
    s, context = subject.encode(episodes.obs[last], episodes.task)
    share = (~episodes.terminated).double()
    tail = agent.critic.value(agent.world_model.latent(s), context).double() * share
    gamma = discount(context, subject.config.training).double()
    reward = agent.reward_normalizer(episodes.reward).double()
    returns, shares = torch.zeros_like(reward), torch.zeros_like(reward)
    for t in reversed(range(len(reward))):
        valid = episodes.valid[t]
        tail = torch.where(valid, reward[t] + gamma * tail, tail)
        share = torch.where(valid, gamma * share, share)
        returns[t], shares[t] = tail, share
    return returns, shares


def _judged_states(episodes: Episodes, share: Float[Tensor, "T N"]) -> Bool[Tensor, "T N"]:
    t = torch.arange(len(share), device=share.device).unsqueeze(1)
    early = t < (LEAST_SHARE * episodes.length).ceil()
    return episodes.valid & ((share <= LARGEST_BOOTSTRAP) | early)
