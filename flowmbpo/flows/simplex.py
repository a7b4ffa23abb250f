"""Geometry of the latent: which state the dynamics move, and how it maps to the latent.

`z` is the latent: groups of V on a simplex, or an unconstrained vector (Euclidean geometry: the state, and no
constraint to keep). On the simplex the model's state `s` is z itself (tangent geometry) or the centred logits y with z
= softmax(y) per group (logit geometry: a velocity on y is replicator dynamics on the simplex, closed by construction).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from jaxtyping import Float
from torch import Tensor

from flowmbpo.nets.simnorm import center, grouped, simnorm

State = Float[Tensor, "... D"]


class Geometry(ABC):
    """Maps between raw network outputs, states and latents. P is the projection onto allowed directions."""

    @property
    @abstractmethod
    def noise_gain(self) -> float:
        """What white noise is multiplied by so that P leaves its variance, the mean over coordinates, as it was."""

    @abstractmethod
    def condition(self, displacement: State, variance: State) -> State:
        """A draw of independent Gaussians of these variances, conditioned on being an allowed displacement."""

    @abstractmethod
    def constraint_log_density(self, mean: State, variance: State, unit: State, weight: State) -> State:
        """Log density of independent Gaussians meeting the constraint, which a conditional likelihood divides by.

        Spread evenly over the coordinates, without the constants: at variances `unit` and mean 0 it is 0. `weight`
        are the positive weights of the coordinates' own terms.
        """

    @abstractmethod
    def project(self, v: State) -> State:
        """P v."""

    @abstractmethod
    def from_logits(self, logits: State) -> State:
        """The state that the encoder's output (or the MLP dynamics') stands for."""

    @abstractmethod
    def latent(self, s: State) -> State:
        """The latent z of a state."""

    @abstractmethod
    def from_latent(self, z: State) -> State:
        """A state of latent z."""

    @abstractmethod
    def move(self, s: State, displacement: State) -> State:
        """The state reached from s by P displacement."""

    @abstractmethod
    def pushforward(self, s: State, v: State) -> State:
        """The latent velocity dz caused by the state velocity v at s."""

    @abstractmethod
    def violation(self, z: State) -> Float[Tensor, ""]:
        """How far any latent lies from where latents may be; 0 where they may be anywhere."""


class EuclideanGeometry(Geometry):
    """s = z, any vector: the observation itself is the state. P is the identity."""

    @property
    def noise_gain(self) -> float:
        """1: P takes nothing away."""
        return 1.0

    def condition(self, displacement: State, variance: State) -> State:
        """The displacement itself: every one is allowed."""
        return displacement

    def constraint_log_density(self, mean: State, variance: State, unit: State, weight: State) -> State:
        """0: there is no constraint."""
        return torch.zeros_like(mean)

    def project(self, v: State) -> State:
        """v itself."""
        return v

    def from_logits(self, logits: State) -> State:
        """The encoder's output itself."""
        return logits

    def latent(self, s: State) -> State:
        """The state itself."""
        return s

    def from_latent(self, z: State) -> State:
        """The latent itself."""
        return z

    def move(self, s: State, displacement: State) -> State:
        """s + displacement."""
        return s + displacement

    def pushforward(self, s: State, v: State) -> State:
        """v itself."""
        return v

    def violation(self, z: State) -> Float[Tensor, ""]:
        """0: there is no constraint."""
        return z.new_zeros(())


class SimplexGeometry(Geometry):
    """Groups of `group` coordinates, each on a simplex; P subtracts each group's mean."""

    def __init__(self, group: int) -> None:
        self.group = group

    @property
    def noise_gain(self) -> float:
        """sqrt(V / (V - 1)): P takes 1/V of a group's variance away."""
        return math.sqrt(self.group / (self.group - 1.0))

    def condition(self, displacement: State, variance: State) -> State:
        """x - v sum(x) / sum(v) per group: what a group's sum is off is taken from its coordinates by their variance.

        The conditional distribution of N(m, diag v) given a group sum of 0. A coordinate that hardly varies
        hardly changes, where P would spread the others' noise over it.
        """
        v = grouped(variance, self.group)
        excess = grouped(displacement, self.group).sum(-2, keepdim=True) / v.sum(-2, keepdim=True)
        return displacement - (v * excess).flatten(-2)

    def constraint_log_density(self, mean: State, variance: State, unit: State, weight: State) -> State:
        """log N(0; sum(m), sum(v)) of each group, times sum(v) / sum(v / w).

        With that weight, 1 where all weights are, the weighted terms of a group stay bounded from below:
        sum_i w_i x_i^2 / v_i >= (sum_i x_i)^2 / sum_i (v_i / w_i) (Cauchy and Schwarz).
        """
        m, v, units, w = (grouped(x, self.group) for x in (mean, variance, unit, weight))
        total = v.sum(-2, keepdim=True)
        log_density = -0.5 * ((total / units.sum(-2, keepdim=True)).log() + m.sum(-2, keepdim=True).square() / total)
        shared = (total / (v / w).sum(-2, keepdim=True)).detach() * log_density / self.group
        return shared.expand_as(v).flatten(-2)

    def project(self, v: State) -> State:
        """P v: the group means removed, so that group sums stay as they are."""
        return center(v, self.group)

    def violation(self, z: State) -> Float[Tensor, ""]:
        """`simplex_violation`."""
        return simplex_violation(z, self.group)


class TangentGeometry(SimplexGeometry):
    """s = z. Moves keep every group's sum; `retract` also keeps positivity."""

    def __init__(self, group: int, *, retract: bool) -> None:
        super().__init__(group)
        self.retract = retract

    def from_logits(self, logits: State) -> State:
        """SimNorm."""
        return simnorm(logits, self.group)

    def latent(self, s: State) -> State:
        """The state itself."""
        return s

    def from_latent(self, z: State) -> State:
        """The latent itself."""
        return z

    def move(self, s: State, displacement: State) -> State:
        """s + P displacement, then the nearest point of the simplex if `retract`."""
        moved = s + self.project(displacement)
        return project_to_simplex(moved, self.group) if self.retract else moved

    def pushforward(self, s: State, v: State) -> State:
        """v itself."""
        return v


class LogitGeometry(SimplexGeometry):
    """s = y, logits centred per group; always on the simplex."""

    def from_logits(self, logits: State) -> State:
        """The logits without their group means, which the softmax does not see."""
        return center(logits, self.group)

    def latent(self, s: State) -> State:
        """Softmax per group."""
        return simnorm(s, self.group)

    def from_latent(self, z: State) -> State:
        """center(log z), z floored at 1e-6."""
        return center(z.clamp(min=1e-6).log(), self.group)

    def move(self, s: State, displacement: State) -> State:
        """s + P displacement."""
        return s + self.project(displacement)

    def pushforward(self, s: State, v: State) -> State:
        """Replicator field: dz = z * (v - <z, v>) per group."""
        z = simnorm(s, self.group)
        mean = grouped(z * v, self.group).sum(-2, keepdim=True)
        return z * (grouped(v, self.group) - mean).flatten(-2)


def make_geometry(name: str, group: int, *, retraction: str) -> Geometry:
    """The geometry of a dynamics config."""
    if name == "euclidean":
        return EuclideanGeometry()
    return LogitGeometry(group) if name == "logit" else TangentGeometry(group, retract=retraction == "project")


def project_to_simplex(x: State, group: int) -> State:
    """Euclidean projection of each group onto the simplex (Duchi et al. 2008): max(x - theta, 0)."""
    # The projection does not see a shift; from 0 down, the sums below round to 1e-7 wherever x lies.
    rows = grouped(x, group)
    rows = rows - rows.amax(-2, keepdim=True)
    ordered = rows.sort(-2, descending=True).values
    rank = torch.arange(1, group + 1, dtype=x.dtype, device=x.device).unsqueeze(-1)
    excess = (ordered.cumsum(-2) - 1.0) / rank
    # At least 1: no comparison holds for NaN, which must come out as NaN.
    support = (ordered > excess).sum(-2, keepdim=True).clamp(min=1)
    theta = excess.gather(-2, support - 1)
    return (rows - theta).clamp(min=0.0).flatten(-2)


def simplex_violation(z: State, group: int) -> Float[Tensor, ""]:
    """Largest distance of any group from its simplex: max over |sum - 1| and negative parts."""
    rows = grouped(z, group)
    sums = (rows.sum(-2) - 1.0).abs().amax()
    return torch.maximum(sums, (-rows).clamp(min=0.0).amax())
