"""Multi-layer perceptrons in the two layer orders of PWM."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from flowmbpo.nets.activations import Activated, ActivationLayer


class NormedLinear(Activated):
    """Linear -> LayerNorm -> activation: the world model's hidden layer (TD-MPC2, Hansen et al. 2024)."""

    def __init__(self, in_dim: int, out_dim: int, *, activate: bool = True) -> None:
        super().__init__()
        self.linear = nn.Linear(in_dim, out_dim)
        self.norm = nn.LayerNorm(out_dim)
        self.activate = activate
        initialise_(self.linear)

    def forward(self, x: Float[Tensor, "... I"]) -> Float[Tensor, "... O"]:
        """Returns [..., out_dim]."""
        x = self.norm(self.linear(x))
        return self.activation(x) if self.activate else x


def initialise_(linear: nn.Linear) -> None:
    """TD-MPC2's initialisation: truncated normal of std 0.02, zero bias."""
    nn.init.trunc_normal_(linear.weight, std=0.02)
    nn.init.zeros_(linear.bias)


def normed_mlp(in_dim: int, units: Sequence[int], out_dim: int, *, normed_output: bool) -> nn.Sequential:
    """NormedLinear hidden layers and a linear head; `normed_output` puts a LayerNorm on the head.

    A plain head starts at zero (a reward of 0, a velocity of 0); a normed one as any other layer.
    """
    layers: list[nn.Module] = []
    width = in_dim
    for unit in units:
        layers.append(NormedLinear(width, unit))
        width = unit
    if normed_output:
        layers.append(NormedLinear(width, out_dim, activate=False))
    else:
        head = nn.Linear(width, out_dim)
        nn.init.zeros_(head.weight)
        nn.init.zeros_(head.bias)
        layers.append(head)
    return nn.Sequential(*layers)


def policy_mlp(in_dim: int, units: Sequence[int], out_dim: int, *, last_layer_scale: float) -> nn.Sequential:
    """Linear -> activation -> LayerNorm hidden layers and a linear head: PWM's policy network.

    torch's default initialisation; the head's is multiplied by `last_layer_scale`.
    """
    layers: list[nn.Module] = []
    width = in_dim
    for unit in units:
        layers += [nn.Linear(width, unit), ActivationLayer(), nn.LayerNorm(unit)]
        width = unit
    head = nn.Linear(width, out_dim)
    with torch.no_grad():
        head.weight.mul_(last_layer_scale)
        head.bias.mul_(last_layer_scale)
    return nn.Sequential(*layers, head)
