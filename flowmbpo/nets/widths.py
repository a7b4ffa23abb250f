"""Hidden widths solved so that one network's parameters or FLOPs equal another's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise


def mlp_parameters(in_dim: int, units: Sequence[int], out_dim: int) -> int:
    """Parameter count of an MLP with a LayerNorm on every hidden layer and a plain head."""
    total, width = 0, in_dim
    for unit in units:
        total += width * unit + 3 * unit  # weights, bias, LayerNorm's two
        width = unit
    return total + width * out_dim + out_dim


def mlp_flops(in_dim: int, units: Sequence[int], out_dim: int) -> int:
    """FLOPs of the matrix products of one row: 2 per weight."""
    return 2 * sum(a * b for a, b in pairwise((in_dim, *units, out_dim)))


def solve_widths(reference: Sequence[int], target: int, count: Callable[[Sequence[int]], int]) -> tuple[int, ...]:
    """Widths proportional to `reference` whose `count` is nearest to `target`.

    `count` must grow with every width. A common factor is found by bisection, then single widths are moved one by one
    while that brings the count closer (rounding alone can miss by 2% on networks of a few dozen units).
    """

    def scaled(factor: float) -> tuple[int, ...]:
        return tuple(max(1, round(width * factor)) for width in reference)

    low, high = 0.0, 1.0
    while count(scaled(high)) < target:
        high *= 2.0
    for _ in range(50):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if count(scaled(middle)) < target else (low, middle)
    best = min((scaled(low), scaled(high)), key=lambda widths: abs(count(widths) - target))
    while True:
        candidates = [
            (*best[:i], best[i] + delta, *best[i + 1 :])
            for i in range(len(best))
            for delta in (-1, 1)
            if best[i] + delta >= 1
        ]
        nearest = min(candidates, key=lambda widths: abs(count(widths) - target))
        if abs(count(nearest) - target) >= abs(count(best) - target):
            return best
        best = nearest
