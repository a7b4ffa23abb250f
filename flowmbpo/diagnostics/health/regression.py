"""Ridge regression on random features: what experience says by itself, without the model.

Letters: B rows, I inputs, Q targets, F features.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

FEATURES = 128
WEIGHT_STD = 1.5
FURTHEST = 6.0  # standard deviations: a row out there is met as the nearest one that is known
PENALTIES = tuple(10.0**power for power in range(-7, 1))


@dataclass(frozen=True)
class Regression:
    """A fitted map from inputs to targets, float64 inside."""

    centre: Tensor
    spread: Tensor
    directions: Tensor
    phases: Tensor
    weights: Tensor

    def __call__(self, inputs: Float[Tensor, "B I"]) -> Float[Tensor, "B Q"]:
        """Predicted targets, float64."""
        return self.features(inputs) @ self.weights

    def features(self, inputs: Float[Tensor, "B I"]) -> Float[Tensor, "B F"]:
        """[1, x, x^2, tanh(W x + b)] of the standardised inputs x, no further out than `FURTHEST`."""
        x = ((inputs.double() - self.centre) / self.spread).clamp(-FURTHEST, FURTHEST)
        waves = (x @ self.directions + self.phases).tanh()
        return torch.cat([torch.ones_like(x[:, :1]), x, x.square(), waves], dim=1)


def fit_regression(
    inputs: Float[Tensor, "B I"], targets: Float[Tensor, "B Q"], seed: int, features: int = FEATURES
) -> Regression:
    """Ridge regression on linear, square and random tanh features (in the manner of Rahimi and Recht 2007).

    The penalty has the smallest generalised cross-validation error (Golub et al. 1979), every target
    weighted by its own scale. The random features depend on `seed` and the number of inputs alone.
    """
    x, y = inputs.double(), targets.double()
    centre, spread = x.mean(0), x.std(0)
    spread = torch.where(spread > 1e-6 * (1.0 + centre.abs()), spread, 1.0)
    width = x.shape[1]
    generator = torch.Generator().manual_seed(seed)
    directions = torch.randn(width, features, generator=generator, dtype=torch.float64) * WEIGHT_STD / width**0.5
    phases = torch.randn(features, generator=generator, dtype=torch.float64)
    blank = Regression(centre, spread, directions.to(x.device), phases.to(x.device), y.new_zeros(0))
    phi = blank.features(inputs)
    scale = y.std(0)
    y = y / torch.where(scale > 0.0, scale, 1.0)
    squares, basis = torch.linalg.eigh(phi.T @ phi)
    squares = squares.clamp(min=0.0)
    projected = basis.T @ (phi.T @ y)
    total, best, chosen = float(y.square().sum()), torch.inf, squares
    for penalty in PENALTIES:
        damped = squares + penalty * squares[-1]
        coefficients = projected / damped.unsqueeze(1)
        explained = float((2.0 * projected * coefficients - squares.unsqueeze(1) * coefficients.square()).sum())
        freedom = len(x) - float((squares / damped).sum())
        error = (total - explained) / max(freedom, 1.0) ** 2
        if error < best:
            best, chosen = error, damped
    weights = basis @ (projected / chosen.unsqueeze(1)) * torch.where(scale > 0.0, scale, 1.0)
    return Regression(centre, spread, blank.directions, blank.phases, weights)


def predict_held_out(
    inputs: Float[Tensor, "B I"],
    targets: Float[Tensor, "B Q"],
    half: Bool[Tensor, " B"],
    seed: int,
    features: int = FEATURES,
) -> Float[Tensor, "B Q"]:
    """Every row predicted by a regression on the other half. Both halves must have rows."""
    found = torch.empty_like(targets, dtype=torch.float64)
    for part in (half, ~half):
        found[part] = fit_regression(inputs[~part], targets[~part], seed, features)(inputs[part])
    return found
