"""Options of every dynamics, and the union that selects one by `kind`.

Adding a world model: its class in one new file in `models/dynamics`, its Config and one name in the union here, one
line in `models/build.py`, and a preset.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field, model_validator

from flowmbpo.config.base import (
    FrozenConfig,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    UnitInterval,
    Units,
    check_solved_units,
)

Geometry = Literal["tangent", "logit", "euclidean"]
Source = Literal["rollout", "teacher"]
Integrator = Literal["euler", "heun", "midpoint", "rk4"]
STAGES: dict[Integrator, int] = {"euler": 1, "heun": 2, "midpoint": 2, "rk4": 4}  # evaluations per substep


@dataclass(frozen=True)
class DynamicsDims:
    """Widths that a dynamics is built for."""

    latent_dim: int
    simnorm_dim: int
    task_dim: int
    action_dim: int


class _DynamicsConfig(FrozenConfig):
    """Options that every dynamics has.

    `units` are the hidden widths of the reference MLP dynamics. A variant with another input or head keeps `parity:
    true` and gets its own width solved so that its parameter count equals the reference's; with `parity: false` it is
    built at `units` as written. `solved_units` are widths to build instead of solving: those of the checkpoint that the
    run starts from, for what parity solves depends on the number of actions. `spectral_norm` keeps the spectral norm of
    the last layer near 1 or below (see `SpectralCap`). `error_scale: change` divides every coordinate's error by the
    running standard deviation of its change, so that slow and fast coordinates count alike.
    """

    units: Units = (512, 512)
    parity: bool = True
    solved_units: Units | None = None
    geometry: Geometry = "tangent"
    source: Source = "rollout"
    loss_space: Literal["latent", "logit"] = "latent"
    retraction: Literal["none", "project"] = "none"
    jacobian_penalty: NonNegativeFloat = 0.0
    spectral_norm: bool = False
    error_scale: Literal["none", "change"] = "none"

    @property
    def solves_widths(self) -> bool:
        """Whether the widths to build are solved for instead of being `units`."""
        return self.parity

    @model_validator(mode="after")
    def _replaces_what_would_be_solved(self) -> _DynamicsConfig:
        check_solved_units(self.solved_units, self.units, solves=self.solves_widths)
        return self

    @model_validator(mode="after")
    def _spaces_fit(self) -> _DynamicsConfig:
        if self.loss_space == "logit" and self.geometry != "logit":
            raise ValueError("loss_space 'logit' needs geometry 'logit'; use loss_space 'latent'")
        if self.retraction != "none" and self.geometry != "tangent":
            raise ValueError(
                "retraction is for geometry 'tangent'; logits are on the simplex by construction, and"
                " euclidean states on none"
            )
        return self


class _SinglePassConfig(_DynamicsConfig):
    """Options of a deterministic dynamics that evaluates its network once.

    `widen_nfe` N above 1 widens the network until one evaluation takes the FLOPs of N evaluations of the
    reference network: what a flow of N velocity evaluations costs. Its size is then not at parity.
    """

    widen_nfe: PositiveInt = 1


class MLPDynamicsConfig(_SinglePassConfig):
    """PWM's dynamics: z' = SimNorm(f([z, e_task, a]))."""

    kind: Literal["mlp"] = "mlp"

    @property
    def solves_widths(self) -> bool:
        """Where it is widened: it is the reference itself."""
        return self.widen_nfe > 1

    @model_validator(mode="after")
    def _output_is_normed(self) -> MLPDynamicsConfig:
        if self.retraction != "none":
            raise ValueError("retraction does not apply to kind 'mlp': its SimNorm output lies on the simplex")
        if self.spectral_norm:
            raise ValueError(
                "spectral_norm does not apply to kind 'mlp': its last layer ends in a LayerNorm, which undoes any"
                " scaling of the weight. Use kind 'residual'"
            )
        return self


class ResidualDynamicsConfig(_SinglePassConfig):
    """Control without flow matching: s' = s + P f([s, e_task, a])."""

    kind: Literal["residual"] = "residual"

    @property
    def solves_widths(self) -> bool:
        """For parity, or for a flow's FLOPs."""
        return self.parity or self.widen_nfe > 1


class GaussianDynamicsConfig(_DynamicsConfig):
    """Control: residual mean and state-dependent log-std, (beta-)NLL, reparameterised samples.

    `nll_weight` brings a loss of order 1 (it is on the standardised displacement) to the order of the
    squared latent errors that `training.dynamics_weight` is chosen for.
    """

    kind: Literal["gaussian"] = "gaussian"
    nll_weight: PositiveFloat = 1.0
    beta: UnitInterval = 0.5
    min_logstd: float = -5.0
    max_logstd: float = 2.0
    scale_decay: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.99

    @model_validator(mode="after")
    def _likelihood_is_bounded(self) -> GaussianDynamicsConfig:
        if self.loss_space == "logit":
            raise ValueError(
                "loss_space does not apply to kind 'gaussian': its likelihood is on the scaled displacement"
            )
        if self.error_scale != "none":
            raise ValueError("error_scale does not apply to kind 'gaussian': its likelihood is scaled already")
        if self.min_logstd >= self.max_logstd:
            raise ValueError(f"min_logstd {self.min_logstd} must lie below max_logstd {self.max_logstd}")
        return self


class _ODEDynamicsConfig(_DynamicsConfig):
    """Options of a dynamics that integrates a velocity field over tau in [0, 1]."""

    integrator: Integrator = "heun"
    substeps: PositiveInt = 4
    tau_features: Literal["scalar", "fourier"] = "scalar"
    substep_noise: NonNegativeFloat = 0.0

    @property
    def nfe(self) -> int:
        """Velocity evaluations per macro step: substeps times the integrator's stages."""
        return self.substeps * STAGES[self.integrator]


class NeuralODEDynamicsConfig(_ODEDynamicsConfig):
    """Control: the flow's velocity network integrated K times, trained on the endpoint only."""

    kind: Literal["neural_ode"] = "neural_ode"


class FlowDynamicsConfig(_ODEDynamicsConfig):
    """Conditional flow matching between a step's source and its target (see `FlowDynamics`).

    Mode `generative` has `source: teacher` by default: the noise of a sampled rollout would become
    part of the displacement that it learns.
    """

    kind: Literal["flow"] = "flow"
    mode: Literal["displacement", "generative"] = "displacement"
    tau_sampling: Literal["uniform", "midpoint"] = "uniform"
    fm_source_grad: Literal["none", "path", "full"] = "path"
    fm_weight: NonNegativeFloat = 1.0
    endpoint_weight: NonNegativeFloat = 0.0
    source_noise: NonNegativeFloat = 0.0
    noise_std: PositiveFloat = 1.0
    scale_decay: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.99

    @model_validator(mode="after")
    def _mode_fits(self) -> FlowDynamicsConfig:
        if self.fm_weight == 0 and self.endpoint_weight == 0:
            raise ValueError("fm_weight and endpoint_weight are both 0: nothing would train the dynamics")
        if self.mode == "displacement":
            return self
        if "source" not in self.model_fields_set:
            object.__setattr__(self, "source", "teacher")  # a default that depends on another field
        if self.loss_space == "logit":
            raise ValueError("loss_space does not apply to mode 'generative': its loss is on the scaled displacement")
        if self.error_scale != "none":
            raise ValueError("error_scale does not apply to mode 'generative': its loss is scaled already")
        if self.source_noise > 0:
            raise ValueError("source_noise belongs to mode 'displacement'; mode 'generative' has noise_std")
        if self.endpoint_weight > 0:
            raise ValueError(
                "endpoint_weight must be 0 in mode 'generative': an endpoint loss collapses the noise to the mean"
            )
        if self.fm_source_grad == "full":
            raise ValueError("fm_source_grad 'full' belongs to mode 'displacement'; mode 'generative' has none or path")
        return self


DynamicsConfig = Annotated[
    MLPDynamicsConfig | ResidualDynamicsConfig | GaussianDynamicsConfig | FlowDynamicsConfig | NeuralODEDynamicsConfig,
    Field(discriminator="kind"),
]
