"""The velocity network shared by flow matching and its neural-ODE control, and its integration."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

from flowmbpo.config.dynamics import DynamicsDims, _ODEDynamicsConfig
from flowmbpo.flows.integrators import integrate
from flowmbpo.flows.paths import tau_columns, tau_width
from flowmbpo.flows.simplex import Geometry
from flowmbpo.models.dynamics.base import matched_network
from flowmbpo.nets.noise import standard_normal


class VelocityField(nn.Module):
    """v = P net([s, e_task, a, extra, tau]): linear zero-initialised head, tangent to the simplex.

    A displacement is signed and sums to 0 per group, so the head may not end in SimNorm: with P
    every Runge-Kutta step keeps group sums exactly. `tangent: False` leaves P out, for a variable
    whose coordinates were rescaled one by one (there group sums mean nothing).
    """

    def __init__(
        self,
        config: _ODEDynamicsConfig,
        dims: DynamicsDims,
        geometry: Geometry,
        *,
        extra_inputs: int = 0,
        tangent: bool = True,
    ) -> None:
        super().__init__()
        self.config = config
        self.tangent = tangent
        self.geometry = geometry
        self.network, self.hidden_units = matched_network(
            config, dims, extra_inputs=extra_inputs + tau_width(config.tau_features), out_dim=dims.latent_dim
        )

    def forward(self, inputs: tuple[Tensor, ...], tau: Float[Tensor, "B 1"]) -> Float[Tensor, "B D"]:
        """The velocity at flow time tau; `inputs` are concatenated in their order."""
        columns = tau_columns(tau, self.config.tau_features)
        v: Tensor = self.network(torch.cat([*inputs, columns], dim=-1))
        return self.geometry.project(v) if self.tangent else v

    def flow(
        self,
        start: Float[Tensor, "B D"],
        before: tuple[Tensor, ...],
        after: tuple[Tensor, ...],
        generator: torch.Generator | None,
    ) -> Float[Tensor, "B D"]:
        """Integrate from tau 0 to 1; the moving state stands between `before` and `after`."""

        def velocity(y: Tensor, tau: float) -> Tensor:
            v: Tensor = self((*before, y, *after), y.new_full((y.shape[0], 1), tau))
            return v

        std = self.config.substep_noise / math.sqrt(self.config.substeps)  # a macro step's variance, whatever K

        def perturb(y: Tensor) -> Tensor:
            noise = standard_normal(y, generator)
            return y + std * (self.geometry.project(noise) if self.tangent else noise)

        return integrate(
            velocity,
            start,
            method=self.config.integrator,
            substeps=self.config.substeps,
            perturb=perturb if std > 0.0 and generator is not None else None,
        )
