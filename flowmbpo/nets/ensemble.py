"""A batched ensemble of MLPs: one matrix product per layer for all members."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor, nn


class EnsembleMLP(nn.Module):
    """N independent MLPs (Linear -> Mish -> LayerNorm hidden layers, linear head) on one input.

    The first layer is one shared product (the input is the same for all), the others are batched.
    Orthogonal initialisation of gain sqrt(2) and zero biases, as PWM's critic; `zero_head` starts
    every member at 0.
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
        first = self.weights[0]
        shared: Tensor = x @ first.transpose(0, 1).flatten(1)  # [B, N * width]
        h: Tensor = torch.unflatten(shared, -1, (self.members, -1)).transpose(0, 1) + self.biases[0]
        for layer in range(1, len(self.weights)):
            h = nn.functional.mish(h)
            h = nn.functional.layer_norm(h, h.shape[-1:])
            h = torch.addcmul(self.norm_biases[layer - 1], h, self.norm_weights[layer - 1])
            h = torch.baddbmm(self.biases[layer], h, self.weights[layer])
        return h
