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

from flowmbpo.diagnostics.esnr_estimate import inner_products
from flowmbpo.diagnostics.statistics import Interval, middle_interval
from flowmbpo.json_documents import Document

UNRESOLVED = "not distinguishable from noise"
NOTHING = Interval(math.nan, math.nan, math.nan)


@dataclass(frozen=True)
class Alignment(Document):
    """Cosine between model and reference, and |model| / |reference|.

    A squared norm that is estimated without bias comes out <= 0 where noise is all that was measured (or
    nothing is there). The cosine is nan where that holds of either side, the ratio where it holds of the reference.
    """

    cosine: Interval
    norm_ratio: Interval
    model_norm: float
    reference_norm: float

    def to_dict(self) -> dict[str, Any]:
        """The JSON object; null, and a `note`, for what is not distinguishable from noise."""
        told = {name: None for name in ("cosine", "norm_ratio") if math.isnan(getattr(self, name).value)}
        return super().to_dict() | told | ({"note": UNRESOLVED} if "cosine" in told else {})


def align_means(
    model: Float[Tensor, "N P"], reference: Float[Tensor, "2 N P"], counts: Float[Tensor, "R N"]
) -> Alignment:
    """Of the mean gradients over copies.

    All three inner products are means over the pairs of different copies, whose noise is independent: unbiased
    for those of the expected gradients, whatever noise model and reference share within a copy. A resample holds
    copies more than once; it too pairs different originals only.

    Measured with Gaussian noise (60 repeats each; N = 8, 16, 32; P = 200; ESNR of a copy's gradient 1, .1 and
    .03; all noise common to both sides, or none, or half of it; true cosines 0, 1 and .5): the cosine's interval
    always holds its value, and the truth in .85 to 1.00; the ratio's the truth in .83 to 1.00, .80 at N = 8. At
    ESNR .03 and N = 8 the cosine is up to .16 too small on average, and its interval says as much.
    """
    both = reference.mean(0)
    pairs = ((model, both), (model, model), (both, both))
    grams = torch.stack([inner_products(a, b) for a, b in pairs]).cpu()
    own = grams.diagonal(dim1=1, dim2=2)

    def products(times: Float[Tensor, "R N"]) -> Float[Tensor, "3 R"]:
        square = times.square()
        among = torch.einsum("rn,knm,rm->kr", times, grams, times) - own @ square.T
        number = times.sum(-1).square() - square.sum(-1)
        return torch.where(number > 0.0, among / number, torch.nan)  # one copy, drawn every time, has no pair

    return _alignment(products(torch.ones_like(counts[:1])), products(counts))


def align_rows(
    model: Float[Tensor, "N P"], reference: Float[Tensor, "2 N P"], counts: Float[Tensor, "R N"]
) -> Alignment:
    """Of all rows at once, as one long vector: nothing cancels between start states.

    `reference` holds two estimates that are independent given the copies; their inner product is the
    reference's squared norm without its measurement noise.
    """
    g, first, second = (rows.double() for rows in (model, *reference))
    sums = torch.stack(
        ((g * (first + second) / 2.0).sum(-1), g.square().sum(-1), (first * second).sum(-1))
    ).cpu()  # fmt: skip
    return _alignment(sums.mean(-1, keepdim=True), sums @ counts.T / counts.sum(-1))


def _alignment(value: Float[Tensor, "3 1"], resampled: Float[Tensor, "3 R"]) -> Alignment:
    """From inner products [model x reference, model^2, reference^2]."""
    own, other = (float(product[0].clamp(min=0.0).sqrt()) for product in value[1:])
    cosine = ratio = NOTHING
    if other > 0.0:
        angles = middle_interval(float(_angle(value)), _angle(resampled))
        ratio = Interval(_slope(angles.value), _slope(angles.low), _slope(angles.high))
        if own > 0.0:
            cosine = middle_interval(float(_cosine(value)), _cosine(resampled))
    return Alignment(cosine, ratio, own, other)


def _cosine(products: Float[Tensor, "3 R"]) -> Float[Tensor, " R"]:
    """The sign of the inner product where noise makes it larger than a cosine can be, or leaves a side no norm:
    such resamples make the interval as wide as it must be. nan where the inner product is 0 too, or nan."""
    inner, own, other = products
    bound = (own.clamp(min=0.0) * other.clamp(min=0.0)).sqrt()
    beyond = inner.abs() > bound
    return torch.where(beyond & (inner != 0.0), inner.sign(), inner / bound)


def _angle(products: Float[Tensor, "3 R"]) -> Float[Tensor, " R"]:
    """Of the norms: the ratio's interval is taken on it, because among its resamples may be infinite ones."""
    _, own, other = products.clamp(min=0.0).sqrt()
    return torch.where((own == 0.0) & (other == 0.0), torch.nan, torch.atan2(own, other))


def _slope(angle: float) -> float:
    return math.inf if angle >= math.pi / 2 - 1e-12 else math.tan(angle)


def told(figure: Interval) -> str:
    """For people."""
    return UNRESOLVED if math.isnan(figure.value) else str(figure)
