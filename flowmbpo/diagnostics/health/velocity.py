"""Whether the dynamics' displacement comes straight from a linear head.

A displacement is signed and sums to 0 per group. A head that ends in SimNorm hands out points of the
simplex in its place: nothing negative, every total the same.

Letters: B rows, D latent.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from flowmbpo.flows.simplex import SimplexGeometry
from flowmbpo.models.dynamics.base import Dynamics
from flowmbpo.models.dynamics.gaussian import GaussianDynamics
from flowmbpo.models.dynamics.residual import ResidualDynamics
from flowmbpo.models.dynamics.velocity import VelocityField
from flowmbpo.models.task_context import TaskContext
from flowmbpo.models.world_model import WorldModel
from flowmbpo.nets.simnorm import simnorm

CONSTANT = 1e-3


@dataclass(frozen=True)
class Shape:
    """What a set of outputs looks like: its smallest entry, and mean and relative spread of its rows' totals."""

    smallest: float
    total: float
    total_spread: float

    @property
    def on_simplex(self) -> bool:
        """Nothing negative, and every row of the same positive total: what ends in a softmax is like that."""
        return self.smallest >= 0.0 and self.total > 0.0 and self.total_spread < CONSTANT


@dataclass(frozen=True)
class Velocity:
    """What was seen of the dynamics' displacement.

    `deviation` is the largest difference of the velocity from its linear head's output (projected where
    the field is tangent), over the size of the larger of the two; None for dynamics without such a
    head. `displacement` describes next state minus state, `output` the velocity itself.
    """

    deviation: float | None
    output: Shape | None
    displacement: Shape


def describe(x: Float[Tensor, "B D"]) -> Shape:
    """The shape of some rows; rounding of totals near 0 counts as spread."""
    totals = x.double().sum(-1)
    total = float(totals.mean())
    spread = float(totals.std()) / abs(total) if total != 0.0 else 0.0
    return Shape(float(x.amin()), total, spread)


@torch.no_grad()  # outputs are looked at, nothing is learnt
def observe_velocity(model: WorldModel, state: Float[Tensor, "B D"], action: Tensor, context: TaskContext) -> Velocity:
    """One macro step of the given states, its inside recorded; stochastic dynamics take their mean."""
    with _recorded(model.dynamics) as seen:
        state_next = model.next(state, action, context)
    displacement = describe(state_next - state)
    if not seen.pairs:
        return Velocity(None, None, displacement)
    deviations = [_relative_difference(output, expected) for output, expected in seen.pairs]
    return Velocity(max(deviations), describe(torch.cat([output for output, _ in seen.pairs])), displacement)


@torch.no_grad()  # errors are measured, nothing is learnt
def errors_as_simnorm(
    model: WorldModel, state: Float[Tensor, "B D"], action: Tensor, context: TaskContext, z_next: Float[Tensor, "B D"]
) -> tuple[Float[Tensor, " B"], Float[Tensor, " B"]] | None:
    """Squared one-step errors as the model is, and with a SimNorm behind its linear head.

    The second is smaller only where the head was trained with one. None for dynamics without such a head.
    """
    velocity, _ = _velocity(model.dynamics)
    geometry = model.geometry
    if velocity is None or not isinstance(geometry, SimplexGeometry) or isinstance(model.dynamics, GaussianDynamics):
        return None
    group = geometry.group

    def normalise(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        return simnorm(output, group)

    def error() -> Tensor:
        return (model.latent(model.next(state, action, context)) - z_next).square().mean(-1)

    plain = error()
    with _heads(velocity)[-1].register_forward_hook(normalise):
        return plain, error()


class _Record:
    def __init__(self) -> None:
        self.head: Tensor | None = None
        self.pairs: list[tuple[Tensor, Tensor]] = []


@contextmanager
def _recorded(dynamics: Dynamics) -> Iterator[_Record]:
    """Inside, every output of the velocity is kept beside what its linear head makes of the same input."""
    record = _Record()
    velocity, tangent = _velocity(dynamics)
    if velocity is None:
        yield record
        return

    def keep_head(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        record.head = output

    def keep_pair(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        assert record.head is not None
        record.pairs.append((output, dynamics.geometry.project(record.head) if tangent else record.head))

    hooks = [_heads(velocity)[-1].register_forward_hook(keep_head), velocity.register_forward_hook(keep_pair)]
    try:
        yield record
    finally:
        for hook in hooks:
            hook.remove()


def _velocity(dynamics: Dynamics) -> tuple[nn.Module | None, bool]:
    """The module whose output is the displacement or its velocity, and whether it is projected on the way out."""
    if isinstance(dynamics, ResidualDynamics | GaussianDynamics):
        return dynamics.network, False  # projected outside, when the state is moved
    for part in dynamics.modules():
        if isinstance(part, VelocityField):
            return part, part.tangent
    return None, False


def _heads(velocity: nn.Module) -> list[nn.Linear]:
    return [part for part in velocity.modules() if isinstance(part, nn.Linear)]


def _relative_difference(a: Tensor, b: Tensor) -> float:
    if a.shape != b.shape:
        return float("inf")
    size = float(torch.maximum(a.abs().amax(), b.abs().amax()))
    return float((a - b).abs().amax()) / size if size > 0.0 else 0.0
