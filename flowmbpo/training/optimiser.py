"""An optimiser that never steps on a non-finite loss or gradient, and the schedules of its rate."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn


class GuardedOptimiser:
    """AdamW (decoupled weight decay; plain Adam at 0) with norm clipping and a finiteness guard.

    One NaN would make every clipped gradient NaN, so the norm is checked before the step; nothing
    is zeroed and stepped anyway.
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        *,
        lr: float,
        betas: tuple[float, float],
        weight_decay: float,
        clip: float | None,
    ) -> None:
        self.parameters = [parameter for parameter in parameters if parameter.requires_grad]
        self.clip = clip
        self.adam = torch.optim.AdamW(self.parameters, lr=lr, betas=betas, weight_decay=weight_decay, fused=True)

    def set_lr(self, lr: float) -> None:
        """Learning rate of the next steps."""
        for group in self.adam.param_groups:
            group["lr"] = lr

    def step(self, loss: Float[Tensor, ""]) -> tuple[Float[Tensor, ""], bool]:
        """Backward, clip, step. Returns the gradient norm before clipping, and whether it stepped."""
        self.adam.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        norm = nn.utils.get_total_norm([p.grad for p in self.parameters if p.grad is not None])
        if not bool(torch.isfinite(norm) & torch.isfinite(loss.detach())):
            self.adam.zero_grad(set_to_none=True)
            return norm, False
        if self.clip is not None:
            nn.utils.clip_grads_with_norm_(self.parameters, self.clip, norm)
        self.adam.step()
        return norm, True

    def state_dict(self) -> dict[str, Any]:
        """The Adam moments and step counts."""
        state: dict[str, Any] = self.adam.state_dict()
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore `state_dict`; the learning rate is set anew every epoch."""
        self.adam.load_state_dict(state)


def learning_rate(initial: float, final: float, epoch: int, epochs: int, kind: Literal["linear", "constant"]) -> float:
    """The rate of epoch `epoch` (from 0) of `epochs`.

    `linear` goes from `initial` at epoch 0 towards `final`, which it reaches at `epochs` and keeps;
    `constant` stays at `initial`.
    """
    if kind == "constant":
        return initial
    return initial + (final - initial) * min(epoch / epochs, 1.0)
