"""Options of every actor, and the union that selects one by `kind`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from flowmbpo.config.base import (
    Activation,
    FrozenConfig,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    Units,
    check_solved_units,
)


class _ActorConfig(FrozenConfig):
    """Options that every actor has.

    `units` are the hidden widths of the reference Gaussian mean network; with `parity: true` a variant's widths are
    solved so that its parameter count equals the Gaussian's. `last_layer_scale` multiplies the initial weights of the
    output layer. `noise_floor` is a standard deviation added before the tanh, after everything else.
    """

    units: Units = (400, 200, 100)
    activation: Activation = "mish"
    parity: bool = True
    last_layer_scale: NonNegativeFloat = 1.0
    noise_floor: NonNegativeFloat = 0.0


class GaussianActorConfig(_ActorConfig):
    """PWM's policy: tanh of a Gaussian with a state-independent log-std."""

    kind: Literal["gaussian"] = "gaussian"
    init_logstd: float = -1.0
    min_logstd: float = -1.427

    @model_validator(mode="after")
    def _starts_above_floor(self) -> GaussianActorConfig:
        if self.init_logstd < self.min_logstd:
            raise ValueError(
                f"init_logstd {self.init_logstd} lies below min_logstd {self.min_logstd}, to which the first update"
                " would raise it; lower min_logstd"
            )
        return self


class FlowActorConfig(_ActorConfig):
    """An ODE from noise to action: a_0 = W z + b + eps, da/dtau = u(a, z, tau, e_task).

    `solved_units` are widths to build instead of solving for parity: those of the checkpoint that the run
    starts from, for what parity solves depends on the number of actions.
    """

    kind: Literal["flow"] = "flow"
    solved_units: Units | None = None
    substeps: PositiveInt = 2
    integrator: Literal["euler", "heun", "midpoint", "rk4"] = "heun"
    linear_start: bool = True
    noise_std: PositiveFloat = 0.3679  # exp(-1): the Gaussian actor's initial std
    learn_noise_std: bool = True
    min_noise_std: NonNegativeFloat = 0.24  # exp(-1.427): the Gaussian actor's floor

    @model_validator(mode="after")
    def _replaces_what_would_be_solved(self) -> FlowActorConfig:
        check_solved_units(self.solved_units, self.units, solves=self.parity)
        return self

    @model_validator(mode="after")
    def _starts_above_floor(self) -> FlowActorConfig:
        if self.noise_std < self.min_noise_std:
            raise ValueError(
                f"noise_std {self.noise_std} lies below min_noise_std {self.min_noise_std}, to which the first update"
                " would raise it; lower min_noise_std"
            )
        return self


ActorConfig = Annotated[GaussianActorConfig | FlowActorConfig, Field(discriminator="kind")]
