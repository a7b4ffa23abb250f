"""An optimiser that never steps on a non-finite loss or gradient, and the schedules of its rate."""

from __future__ import annotations

from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn


class GuardedOptimiser:
    """Adam with norm clipping, L2 weight decay and a finiteness guard, on all that a module learns.

    L2 decay is coupled, as in torch's Adam: `weight_decay` times a linear layer's weight is added to its clipped
    gradient; biases, LayerNorm and task embeddings are left alone. (Decoupled, as AdamW has it, PWM's rates would take
    half a percent off the weights over a whole run.) One NaN would make every clipped gradient NaN, so the norm is
    checked before the step; nothing is zeroed and stepped anyway.
    """

    def __init__(
        self,
        module: nn.Module,
        *,
        lr: float,
        betas: tuple[float, float],
        weight_decay: float,
        clip: float | None,
    ) -> None:
        self.parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
        self.decayed = [
            weight
            for layer in module.modules()
            if isinstance(layer, nn.Linear)
            for weight in layer.parameters()
            if weight.ndim == 2 and weight.requires_grad
        ]
        self.weight_decay = weight_decay
        self.clip = clip
        self.adam = torch.optim.Adam(self.parameters, lr=lr, betas=betas, fused=True)

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
        if self.weight_decay > 0.0:
            for weight in self.decayed:
                if weight.grad is not None:
                    weight.grad.add_(weight.detach(), alpha=self.weight_decay)
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
