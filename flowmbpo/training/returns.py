"""Returns over imagined rollouts: the actor's objective and the critic's TD(lambda) targets.

Letters: T horizon H, B batch. Transition t goes from z_t to z_{t+1} and earns `rewards[t]`; `continues[t]` is 1 minus
the probability that it ended the task. What follows a transition is weighted by it, so that a certain end (0) closes
the segment, its own reward included, and a fractional one stops bootstrapping in proportion.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def td_lambda(
    rewards: Float[Tensor, "T B"],
    values: Float[Tensor, "T B"],
    continues: Float[Tensor, "T B"],
    gamma: Float[Tensor, "#T B"] | Float[Tensor, " B"] | float,
    lam: float,
) -> Float[Tensor, "T B"]:
    """TD(lambda) targets of V(z_0) .. V(z_{H-1}); `values` are V(z_1) .. V(z_H).

    Row h is the target of a segment that starts at z_h and has n = H - h steps left::

        (1 - lam) sum_{k=1}^{n-1} lam^(k-1) R_k + lam^(n-1) R_n
        R_k = sum_{i<k} gamma^i c_i r_{h+i} + gamma^k c_k V(z_{h+k}),  c_i = prod_{j<i} continues[h+j]

    computed backwards as G_h = r_h + gamma continues_h ((1 - lam) V_{h+1} + lam G_{h+1}), G_H = V_H
    (Sutton and Barto, Reinforcement Learning, 2nd edition, 12.1 and 12.2).
    """
    assert rewards.shape == values.shape == continues.shape, (rewards.shape, values.shape, continues.shape)
    discount = gamma * continues
    target = values[-1]
    targets = []
    for h in reversed(range(len(rewards))):
        target = rewards[h] + discount[h] * torch.lerp(values[h], target, lam)
        targets.append(target)
    return torch.stack(targets[::-1])


def discounted_return(
    rewards: Float[Tensor, "T B"],
    terminal_value: Float[Tensor, " B"],
    continues: Float[Tensor, "T B"],
    gamma: Float[Tensor, " B"] | float,
) -> Float[Tensor, " B"]:
    """sum_{h<H} gamma^h c_h r_h + gamma^H c_H V(z_H), c_h = prod_{j<h} continues[j].

    Differentiable in every tensor. The value of the state after H transitions is discounted H times.
    """
    assert rewards.shape == continues.shape, (rewards.shape, continues.shape)
    discount = gamma * continues
    total = terminal_value
    for h in reversed(range(len(rewards))):
        total = rewards[h] + discount[h] * total
    return total
