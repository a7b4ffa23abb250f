"""Whether the policy writes the action's columns in the order in which its actions were stored.

The newest rows of the replay buffer were acted by nearly these weights: the policy's own actions in
those states are like the stored ones, unless its columns have changed places since.

Letters: B rows, A action.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from flowmbpo.data.replay import ReplayBuffer
from flowmbpo.diagnostics.health.arrangement import Arrangement, improve
from flowmbpo.diagnostics.health.comparison import Paired, compare_errors
from flowmbpo.diagnostics.health.experience import newest_stretches
from flowmbpo.diagnostics.subject import Subject

ROWS = 512  # of 1024 rows some are of a policy quite different: young runs then prefer others by 0.4 (z 4.5)
FOLLOWS_Z = 3.0  # a second condition: the arrangement itself must be better by z 5


@dataclass(frozen=True)
class PolicyColumns:
    """The arrangement of the policy's columns that is most like the stored actions, against the columns as they are.

    `nearest` is the arrangement one step away that came closest to being better. `follows` says whether the
    policy, so arranged, is nearer to the stored actions than no action at all, or nearer to those of a
    state than to those of others: random actions are no policy's, and say nothing about columns.
    """

    arrangement: Arrangement
    reached: Paired
    nearest: Paired
    follows: bool


@torch.no_grad()  # actions are compared, nothing is learnt
def compare_policy_columns(subject: Subject, replay: ReplayBuffer, effect: float) -> PolicyColumns | None:
    """Deterministic actions against stored ones, in the newest rows. None where these are too few."""
    generator = subject.generator("policy columns")
    rows = newest_stretches(replay, ROWS, generator)
    if not rows.comparable:
        return None
    stored, own = rows.action[0], subject.agent.act(rows.obs[0], rows.task)

    def error(action: Tensor) -> Tensor:
        return (action - stored).square().mean(-1)

    arrangement, reached, nearest = improve(own, error, rows.block, effect)
    arranged = arrangement.apply(own)
    other = torch.randperm(len(rows), generator=generator, device=generator.device).to(own.device)
    blunt = (torch.zeros_like(own), arranged[other])
    compared = [compare_errors(error(each), error(arranged), rows.block) for each in blunt]
    return PolicyColumns(arrangement, reached, nearest, any(each.better(effect, FOLLOWS_Z) for each in compared))
