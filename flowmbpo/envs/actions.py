"""Actions as every environment takes them: the right shape, finite, clipped to [-1, 1]."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def bounded_actions(action: Float[Tensor, "N A"], num_envs: int, action_dim: int) -> Float[Tensor, "N A"]:
    """float32 actions in [-1, 1], without a gradient; the environment is never differentiated.

    Raises ValueError on another shape or on a value that is not finite.
    """
    if action.shape != (num_envs, action_dim):
        raise ValueError(f"actions have shape {tuple(action.shape)}; expected ({num_envs}, {action_dim})")
    action = action.detach().to(dtype=torch.float32, device="cpu")
    # One reduction instead of isfinite over all: a sum is finite unless an addend is not (or it
    # overflows, which the slow path then sees through).
    if not torch.isfinite(action.sum()) and not torch.isfinite(action).all():
        row = int((~torch.isfinite(action)).any(dim=-1).nonzero()[0, 0])
        raise ValueError(f"the action of environment {row} is not finite: {action[row].tolist()}")
    return action.clamp(-1.0, 1.0)
