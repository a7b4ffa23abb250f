"""Options of the world model and the critic."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from flowmbpo.config.base import Activation, FrozenConfig, NonNegativeInt, PositiveFloat, PositiveInt, Units
from flowmbpo.config.dynamics import DynamicsConfig, MLPDynamicsConfig


class _EncoderConfig(FrozenConfig):
    """Options that every encoder has.

    The first `normalize_steps` collected observations make the mean and the standard deviation by which every
    observation is normalised (clipped at +-10), which then stay as they are; 0 leaves observations as they are.
    """

    normalize_steps: NonNegativeInt = 0


class EncoderConfig(_EncoderConfig):
    """obs -> Linear, LayerNorm, activation blocks -> SimNorm latent."""

    kind: Literal["mlp"] = "mlp"
    units: Units = (256,)


class IdentityEncoderConfig(_EncoderConfig):
    """The (normalised) observation is the state: z = o. Goes with `dynamics.geometry: euclidean`."""

    kind: Literal["identity"] = "identity"


AnyEncoderConfig = Annotated[EncoderConfig | IdentityEncoderConfig, Field(discriminator="kind")]


class ScalarRewardConfig(FrozenConfig):
    """One output, squared error against the reward divided by its running scale."""

    kind: Literal["scalar"] = "scalar"
    units: Units = (512, 512)


class TwoHotRewardConfig(FrozenConfig):
    """`bins` logits over [low, high] in symlog space, soft cross-entropy.

    `decode: symlog` leaves out the symexp when the actor reads the reward, as PWM does.
    """

    kind: Literal["two_hot"] = "two_hot"
    units: Units = (512, 512)
    bins: Annotated[int, Field(ge=3)] = 101
    low: float = -10.0
    high: float = 10.0
    decode: Literal["symexp", "symlog"] = "symexp"

    @model_validator(mode="after")
    def _range_ordered(self) -> TwoHotRewardConfig:
        if self.low >= self.high:
            raise ValueError(f"low {self.low} must lie below high {self.high}")
        return self


RewardConfig = Annotated[ScalarRewardConfig | TwoHotRewardConfig, Field(discriminator="kind")]


class TerminationConfig(FrozenConfig):
    """Binary head p(terminated | z', e_task), for tasks that can terminate."""

    units: Units = (256,)


class DecoderConfig(FrozenConfig):
    """Reads the (normalised) observation back from the latent, so that the latent keeps what control needs.

    `weight` multiplies the mean squared error over observation features (padding, which is 0, among them) in the
    model's loss.
    """

    units: Units = (256,)
    weight: PositiveFloat = 1.0


class ModelConfig(FrozenConfig):
    """The world model. `task_dim` 0 means no task embedding (single task).

    `activation` is that of every hidden layer; silu takes 0.4 of the time of mish. With `encoder_learns_dynamics:
    false` the dynamics' loss does not shape the encoder: reward and decoder alone do.
    """

    latent_dim: PositiveInt = 512
    simnorm_dim: Annotated[int, Field(ge=2)] = 8
    task_dim: NonNegativeInt = 0
    activation: Activation = "mish"
    encoder: AnyEncoderConfig = EncoderConfig()
    dynamics: DynamicsConfig = MLPDynamicsConfig()
    reward: RewardConfig = ScalarRewardConfig()
    termination: TerminationConfig | None = None
    decoder: DecoderConfig | None = None
    encoder_learns_dynamics: bool = True

    @model_validator(mode="after")
    def _decoder_has_something_to_decode(self) -> ModelConfig:
        if self.encoder.kind == "identity" and (self.decoder is not None or not self.encoder_learns_dynamics):
            raise ValueError(
                "decoder and encoder_learns_dynamics shape an encoder, and encoder.kind 'identity' learns nothing: "
                "leave them away, or use encoder.kind 'mlp'"
            )
        if not self.encoder_learns_dynamics and self.decoder is None:
            raise ValueError(
                "encoder_learns_dynamics: false leaves the reward alone to shape the encoder: set model.decoder too"
            )
        return self

    @model_validator(mode="after")
    def _latent_fits_geometry(self) -> ModelConfig:
        if self.dynamics.geometry != "euclidean" and self.latent_dim % self.simnorm_dim:
            raise ValueError(f"latent_dim {self.latent_dim} is not a multiple of simnorm_dim {self.simnorm_dim}")
        encoder, geometry = self.encoder.kind, self.dynamics.geometry
        if encoder == "identity" and geometry != "euclidean":
            raise ValueError(
                f"encoder.kind 'identity' needs dynamics.geometry 'euclidean', not '{geometry}':"
                " an observation does not lie on a simplex"
            )
        if encoder != "identity" and geometry == "euclidean":
            raise ValueError(
                f"dynamics.geometry 'euclidean' needs encoder.kind 'identity', not '{encoder}':"
                " that encoder's latents lie on a simplex (geometry 'tangent' or 'logit')"
            )
        return self


class CriticConfig(FrozenConfig):
    """An ensemble of value functions. `target_decay` turns on an EMA target network.

    `reduction` makes one value of the members' for targets, `actor_reduction` for what the actor climbs (null: the
    same). With `bins` every member has that many logits over [-symlog_range, symlog_range] in symlog space and a
    soft cross-entropy loss, as TD-MPC2's Q functions; null is one output and a squared error (PWM).
    """

    units: Units = (400, 200)
    activation: Activation = "mish"
    ensemble: PositiveInt = 3
    reduction: Literal["min", "mean"] = "min"
    actor_reduction: Literal["min", "mean"] | None = None
    bins: Annotated[int, Field(ge=3)] | None = None
    symlog_range: PositiveFloat = 6.0
    zero_init: bool = False
    target_decay: Annotated[float, Field(gt=0.0, lt=1.0)] | None = None

    @model_validator(mode="after")
    def _range_has_bins(self) -> CriticConfig:
        if self.bins is None and self.symlog_range != CriticConfig.model_fields["symlog_range"].default:
            raise ValueError("symlog_range is that of a two-hot critic: set bins (51, for instance), or leave it away")
        return self
