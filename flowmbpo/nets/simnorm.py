"""Simplicial normalisation (Lavoie et al. 2022), as used by TD-MPC2 and PWM.

A latent of width D is G = D / V groups of V; each group is a point of the (V-1)-simplex. Groups are interleaved (group
g holds coordinates g, g + G, g + 2G, ...), so that the softmax runs over a strided middle axis: about 15 times faster
on CPU than a last axis of 8. The layout only permutes the latent's coordinates.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def grouped(x: Float[Tensor, "... D"], group: int) -> Float[Tensor, "... V G"]:
    """The same numbers with a group's members along the second-last axis."""
    return torch.unflatten(x, -1, (group, -1))


def simnorm(logits: Float[Tensor, "... D"], group: int) -> Float[Tensor, "... D"]:
    """Softmax within each group of `group` coordinates."""
    return grouped(logits, group).softmax(-2).flatten(-2)


def center(x: Float[Tensor, "... D"], group: int) -> Float[Tensor, "... D"]:
    """Subtract each group's mean: the orthogonal projection P onto the simplex's tangent space."""
    rows = grouped(x, group)
    return torch.sub(rows, rows.sum(-2, keepdim=True), alpha=1.0 / group).flatten(-2)  # one pass less than mean
