"""Norms of Jacobians that are never built: Hutchinson's estimate, and the largest singular value from products.

A map of B independent rows has one Jacobian per row, J [D, I]; Q is an orthogonal projection of its input. Products
with J^T are reverse passes, with J the derivative of a reverse pass to its seed: both exact.

Letters: B rows, D outputs, I inputs, P probes, K iterations.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from flowmbpo.diagnostics.statistics import Interval, positive_mean_interval
from flowmbpo.json_documents import Document

Projection = Callable[[Tensor], Tensor]
ROUNDING = 1e-5
"""Relative error of float32 norms of some hundred terms through some hundred operations; measured 3e-7 to 2e-6."""
MISS = 0.01  # probability of a row whose largest singular value is missed by more than the tolerance
EXHAUSTED = 1e-5  # a residual below this share of the largest eigenvalue is float32's rounding


class Linearised:
    """The Jacobians J Q of `output` in `point`: rows of `output` must depend on their own row of `point` alone."""

    def __init__(self, output: Float[Tensor, "B D"], point: Float[Tensor, "B I"]) -> None:
        self.output, self.point = output, point

    @cached_property
    def _pullback(self) -> tuple[Tensor, Tensor]:
        seed = torch.zeros_like(self.output, requires_grad=True)
        return torch.autograd.grad(self.output, self.point, seed, create_graph=True)[0], seed

    def transposed(self, u: Float[Tensor, "B D"]) -> Float[Tensor, "B I"]:
        """J^T u."""
        (product,) = torch.autograd.grad(self.output, self.point, u, retain_graph=True)
        return product

    def forward(self, v: Float[Tensor, "B I"]) -> Float[Tensor, "B D"]:
        """J v: the derivative in u of (J^T u) . v, which is linear in u."""
        (product,) = torch.autograd.grad(*self._pullback, v, retain_graph=True)
        return product


def hutchinson(
    jacobian: Linearised, projections: tuple[Projection, ...], probes: int, generator: torch.Generator
) -> tuple[Float[Tensor, "P B"], ...]:
    """||Q J^T eps||^2 for `probes` Rademacher eps, per projection Q: unbiased for ||J Q||_F^2 (Hutchinson 1990)."""
    output, squares = jacobian.output, []
    for _ in range(probes):
        signs = torch.randint(0, 2, output.shape, generator=generator, device=output.device)
        pulled = jacobian.transposed(signs.to(output.dtype) * 2.0 - 1.0)
        squares.append([project(pulled).double().square().sum(-1) for project in projections])
    return tuple(torch.stack(column) for column in zip(*squares, strict=True))


@dataclass(frozen=True)
class Frobenius(Document):
    """Root of the mean over rows of ||J Q||_F^2.

    `given_rows` covers the value of these very rows (Student's t over the probes), `over_rows` that of all states of
    which the rows are a sample (t over rows).
    """

    given_rows: Interval
    over_rows: Interval
    rows: int
    probes: int

    @classmethod
    def of(cls, squares: Float[Tensor, "P B"]) -> Frobenius:
        """From `hutchinson`'s estimates."""
        given, over = (_root(positive_mean_interval(squares.mean(dim), ROUNDING)) for dim in (1, 0))
        return cls(given, over, rows=squares.shape[1], probes=squares.shape[0])

    def to_dict(self) -> dict[str, object]:
        """The JSON object."""
        own = {"over_states": [self.over_rows.low, self.over_rows.high], "rows": self.rows, "probes": self.probes}
        return self.given_rows.to_dict() | own


def _root(square: Interval) -> Interval:
    return Interval(math.sqrt(square.value), math.sqrt(max(square.low, 0.0)), math.sqrt(square.high))


def iterations_for(tolerance: float, rank: int) -> int:
    """Products with J^T J after which a row's largest singular value is known to `tolerance`, but for 1 in 100.

    Lanczos from a random start on a symmetric matrix of order n >= 3 misses its largest eigenvalue by more than a share
    e with probability at most 1.648 sqrt(n) exp(-sqrt(e) (2 k - 1)) (Kuczynski and Wozniakowski 1992, theorem 4.2);
    after n products it is exact. A share e of the eigenvalue is 1 - (1 + tolerance)^-2 for its root.
    """
    share = 1.0 - (1.0 + tolerance) ** -2
    needed = (math.log(1.648 * math.sqrt(rank) / MISS) / math.sqrt(share) + 1.0) / 2.0
    return min(math.ceil(needed), rank)


@dataclass(frozen=True)
class Spectral(Document):
    """Largest singular value of J Q per row, from below: the truth lies in [value, (1 + tolerance) value].

    For each row with probability .99 where it `converged`; `iterations` products with J^T J were made.
    """

    values: Float[Tensor, " B"]
    converged: Bool[Tensor, " B"]
    tolerance: float
    iterations: int

    @property
    def over_rows(self) -> Interval:
        """Root mean square over rows, its interval over all states of which they are a sample (tolerance on top)."""
        return _root(positive_mean_interval(self.values.square()))

    def to_dict(self) -> dict[str, object]:
        """The JSON object."""
        return self.over_rows.to_dict() | {
            "largest": float(self.values.max()),
            "tolerance": self.tolerance,
            "iterations": self.iterations,
            "converged": float(self.converged.double().mean()),
            "rows": len(self.values),
        }


def spectral_norm(
    jacobian: Linearised,
    project: Projection,
    rank: int,
    generator: torch.Generator,
    *,
    tolerance: float = 0.01,
    max_iterations: int = 100,
) -> Spectral:
    """Largest singular value of J Q, `rank` the dimension of Q's image, by power iteration with memory.

    Every iterate of the power iteration v <- Q J^T J Q v is kept and made orthogonal to those before it; the value is
    the root of the largest Ritz value of their span (Lanczos 1950): tens of products where the last alone needs
    hundreds.
    """
    needed = iterations_for(tolerance, rank)
    count = min(needed, max_iterations)
    point = jacobian.point
    start = torch.randn(point.shape, generator=generator, dtype=point.dtype, device=point.device)
    basis = [_unit(project(start.double()))]
    ritz = point.new_zeros(len(point), count, count, dtype=torch.float64)
    exhausted = torch.zeros(len(point), dtype=torch.bool, device=point.device)
    for k in range(count):
        pulled = project(jacobian.transposed(jacobian.forward(basis[k].to(point.dtype))).double())
        known = torch.stack(basis, dim=1)
        ritz[:, : k + 1, k] = (known @ pulled.unsqueeze(-1)).squeeze(-1)
        ritz[:, k, : k + 1] = ritz[:, : k + 1, k]
        for _ in range(2):  # twice is enough against rounding (Kahan, in Parlett 1980)
            pulled = project(pulled - (known.mT @ (known @ pulled.unsqueeze(-1))).squeeze(-1))
        size = pulled.norm(dim=-1)
        exhausted |= size <= EXHAUSTED * ritz.diagonal(dim1=-2, dim2=-1).amax(-1)
        basis.append(torch.where(exhausted.unsqueeze(-1), 0.0, _unit(pulled)))
    largest = torch.linalg.eigvalsh(ritz).amax(-1).clamp(min=0.0)
    converged = exhausted | torch.full_like(exhausted, count >= needed)
    return Spectral(largest.sqrt(), converged, tolerance, count)


def _unit(x: Tensor) -> Tensor:
    norm = x.norm(dim=-1, keepdim=True)
    return x / torch.where(norm > 0.0, norm, 1.0)
