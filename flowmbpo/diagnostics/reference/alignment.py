"""How well two sets of gradients agree, with what the choice of start states leaves open.

Letters: N copies (the independent units of the bootstrap), P parameters, R resamples.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from flowmbpo.diagnostics.statistics import Interval, middle_interval


@dataclass(frozen=True)
class Alignment:
    """Cosine between model and reference, and |model| / |reference|."""

    cosine: Interval
    norm_ratio: Interval
    model_norm: float
    reference_norm: float

    def to_dict(self) -> dict[str, Any]:
        """The JSON object."""
        return {
            "cosine": self.cosine.to_dict(),
            "norm_ratio": self.norm_ratio.to_dict(),
            "model_norm": self.model_norm,
            "reference_norm": self.reference_norm,
        }


def align_means(
    model: Float[Tensor, "N P"], reference: Float[Tensor, "2 N P"], counts: Float[Tensor, "R N"]
) -> Alignment:
    """Of the mean gradients over copies.

    `reference` holds two estimates that are independent given the copies; their inner product is the
    reference's squared norm without its measurement noise. Where that comes out <= 0 the noise is
    larger than the gradient: the cosine then is the sign of the inner product, the ratio infinite,
    and the interval as wide as it must be.
    """
    g, first, second = (rows.double() for rows in (model, *reference))
    grams = torch.stack((g @ (first + second).T / 2.0, g @ g.T, first @ second.T)).cpu()
    counts = counts / counts.sum(-1, keepdim=True)
    whole = torch.full_like(counts[:1], 1.0 / counts.shape[-1])

    def products(weights: Tensor) -> Tensor:
        return torch.einsum("rn,knm,rm->kr", weights, grams, weights)

    return _alignment(products(whole), products(counts))


def align_rows(
    model: Float[Tensor, "N P"], reference: Float[Tensor, "2 N P"], counts: Float[Tensor, "R N"]
) -> Alignment:
    """Of all rows at once, as one long vector: nothing cancels between start states."""
    g, first, second = (rows.double() for rows in (model, *reference))
    sums = torch.stack(
        ((g * (first + second) / 2.0).sum(-1), g.square().sum(-1), (first * second).sum(-1))
    ).cpu()  # fmt: skip
    return _alignment(sums.mean(-1, keepdim=True), sums @ counts.T / counts.sum(-1))


def _alignment(value: Float[Tensor, "3 1"], found: Float[Tensor, "3 R"]) -> Alignment:
    """From inner products [model x reference, model^2, reference^2]."""
    own, other = (float(product[0].clamp(min=0.0).sqrt()) for product in value[1:])
    angles = middle_interval(float(_angle(value)), _angle(found))
    return Alignment(
        cosine=middle_interval(float(_cosine(value)), _cosine(found)),
        norm_ratio=Interval(_slope(angles.value), _slope(angles.low), _slope(angles.high)),
        model_norm=own,
        reference_norm=other,
    )


def _cosine(products: Float[Tensor, "3 R"]) -> Float[Tensor, " R"]:
    """nan where there is no angle: one side has no gradient and the inner product is 0."""
    inner, own, other = products
    bound = (own.clamp(min=0.0) * other.clamp(min=0.0)).sqrt()
    return torch.where((inner.abs() <= bound) | (inner == 0.0), inner / bound, inner.sign())


def _angle(products: Float[Tensor, "3 R"]) -> Float[Tensor, " R"]:
    """Of the norms: the ratio's interval is taken on it, because among its resamples may be infinite ones."""
    _, own, other = products.clamp(min=0.0).sqrt()
    return torch.where((own == 0.0) & (other == 0.0), torch.nan, torch.atan2(own, other))


def _slope(angle: float) -> float:
    return math.inf if angle >= math.pi / 2 - 1e-12 else math.tan(angle)
