"""How well two sets of gradients agree, with what the choice of start states leaves open.

Letters: N copies (the independent units of the bootstrap), P parameters, R resamples.
"""

from __future__ import annotations

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
    cosine, ratio = _figures(value)
    cosines, ratios = _figures(found)
    return Alignment(
        cosine=middle_interval(float(cosine), cosines),
        norm_ratio=middle_interval(float(ratio), ratios),
        model_norm=float(value[1, 0].clamp(min=0.0).sqrt()),
        reference_norm=float(value[2, 0].clamp(min=0.0).sqrt()),
    )


def _figures(products: Float[Tensor, "3 R"]) -> tuple[Float[Tensor, " R"], Float[Tensor, " R"]]:
    inner, own, other = products
    bound = (own.clamp(min=0.0) * other.clamp(min=0.0)).sqrt()
    # 0/0 is nan: without a gradient on one side there is no angle.
    cosine = torch.where(inner.abs() <= bound, inner / bound, inner.sign())
    cosine = torch.where(own <= 0.0, torch.nan, cosine)
    return cosine, (own.clamp(min=0.0) / other.clamp(min=0.0)).sqrt()
