"""Windows of replayed transitions, as the model update reads them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """B windows of H transitions, time-major (T = H, B batch, O observation, A action).

    `action[t]`, `reward[t]` and `terminated[t]` belong to the transition obs[t] -> obs[t + 1]::

        obs[0] --action[0]--> obs[1] --action[1]--> obs[2]  ...  obs[H-1] --action[H-1]--> obs[H]
                  reward[0]             reward[1]                            reward[H-1]
              terminated[0]         terminated[1]                        terminated[H-1]
                   valid[0]              valid[1]                             valid[H-1]

    A window may run past the end of its episode (or past the newest stored step). `valid` is false from the first
    transition that does not exist on; `valid[0]` is always true. An invalid transition is padding: zero action and
    reward, not terminated, and the last true observation repeated. `terminated` marks the transition on which the task
    ended itself; a time limit sets nothing, because the value behind it is bootstrapped.
    """

    obs: Float[Tensor, "T+1 B O"]
    action: Float[Tensor, "T B A"]
    reward: Float[Tensor, "T B"]
    terminated: Bool[Tensor, "T B"]
    valid: Bool[Tensor, "T B"]
    task: Int[Tensor, " B"]

    def to(self, device: torch.device | str) -> Batch:
        """The same windows on another device (itself where it already lies there)."""
        if self.obs.device == torch.device(device):
            return self
        return Batch(
            obs=self.obs.to(device),
            action=self.action.to(device),
            reward=self.reward.to(device),
            terminated=self.terminated.to(device),
            valid=self.valid.to(device),
            task=self.task.to(device),
        )
