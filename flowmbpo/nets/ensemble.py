"""A batched ensemble of MLPs: one matrix product per layer for all members."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor, nn

from flowmbpo.nets.activations import Activated


class EnsembleMLP(Activated):
    """N independent MLPs (Linear -> activation -> LayerNorm hidden layers, linear head) on one input.

    Orthogonal initialisation of gain sqrt(2) and zero biases, as PWM's critic; `zero_head` starts every member at 0.
    """

    def __init__(self, members: int, in_dim: int, units: Sequence[int], out_dim: int, *, zero_head: bool) -> None:
        super().__init__()
        self.members = members
        dims = [in_dim, *units, out_dim]
        self.weights = nn.ParameterList(nn.Parameter(torch.empty(members, i, o)) for i, o in pairwise(dims))
        self.biases = nn.ParameterList(nn.Parameter(torch.zeros(members, 1, o)) for o in dims[1:])
        self.norm_weights = nn.ParameterList(nn.Parameter(torch.ones(members, 1, u)) for u in units)
        self.norm_biases = nn.ParameterList(nn.Parameter(torch.zeros(members, 1, u)) for u in units)
        for weight in self.weights:
            for member in weight.unbind():
                nn.init.orthogonal_(member, 2.0**0.5)
        if zero_head:
            nn.init.zeros_(self.weights[-1])

    def forward(self, x: Float[Tensor, "B I"]) -> Float[Tensor, "N B O"]:
        """Every member's output."""
        h = torch.baddbmm(self.biases[0], x.expand(self.members, -1, -1), self.weights[0])
        for layer in range(1, len(self.weights)):
            h = self.activation(h)
            h = nn.functional.layer_norm(h, h.shape[-1:])
            # LayerNorm's scale and shift are folded into the next product: they cost a pass over the
            # weights instead of several over the activations.
            weight, bias = self.weights[layer], self.biases[layer]
            bias = torch.baddbmm(bias, self.norm_biases[layer - 1], weight)
            h = torch.baddbmm(bias, h, self.norm_weights[layer - 1].transpose(1, 2) * weight)
        return h
