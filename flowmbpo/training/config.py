"""Options of the FoG training loop (defaults: PWM's published values). Imports no torch."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from flowmbpo.config.base import (
    FrozenConfig,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    UnitInterval,
)


class ClipConfig(FrozenConfig):
    """Largest gradient norm per optimiser; null leaves it unclipped."""

    actor: PositiveFloat | None = 1.0
    critic: PositiveFloat | None = 100.0
    model: PositiveFloat | None = 20.0


Beta = Annotated[float, Field(ge=0.0, lt=1.0)]


class TrainingConfig(FrozenConfig):
    """One epoch: `horizon` steps in every environment, then `rounds` rounds of updates.

    A round is `wm_iterations` model updates, one actor update, and `critic_iterations` passes over
    `critic_batches` shuffled minibatches of that actor update's rollout.

    `preactivation_penalty` weighs the mean square of what the actor puts into its tanh, at the start
    states: first-order gradients vanish in a saturated tanh, and a policy that got there stays.
    `exploration_noise` is the std of Gaussian noise on collected actions, clipped to [-1, 1].
    `max_faults` is how many episodes that the simulator broke may be thrown away before the run stops.
    """

    epochs: PositiveInt = 15_000
    horizon: PositiveInt = 16
    rounds: PositiveInt = 1
    wm_batch_size: PositiveInt = 256
    wm_iterations: PositiveInt = 8
    wm_buffer_size: PositiveInt = 1_000_000
    actor_batch_size: PositiveInt | None = None  # null: the number of environments
    noise_replicas: PositiveInt = 1
    critic_iterations: PositiveInt = 8
    critic_batches: PositiveInt = 4
    gamma: Literal["task"] | UnitInterval = 0.99
    lam: UnitInterval = 0.95
    rho: Annotated[float, Field(gt=0.0, le=1.0)] = 0.99
    dynamics_weight: NonNegativeFloat = 1.0
    reward_weight: NonNegativeFloat | Literal["1/H"] = "1/H"
    termination_weight: NonNegativeFloat = 1.0
    actor_lr: PositiveFloat = 5e-4
    critic_lr: PositiveFloat = 5e-4
    model_lr: PositiveFloat = 3e-4
    lr_schedule: Literal["linear", "constant"] = "linear"
    final_lr: PositiveFloat = 1e-5
    betas: tuple[Beta, Beta] = (0.7, 0.95)
    model_betas: tuple[Beta, Beta] = (0.9, 0.999)
    weight_decay: NonNegativeFloat = 0.0
    clip: ClipConfig = ClipConfig()
    preactivation_penalty: NonNegativeFloat = 0.0
    exploration_noise: NonNegativeFloat = 0.0
    actor_input_gradient: Literal["through", "detached"] = "through"
    reward_normalization: Literal["scale", "standardize", "none"] = "scale"
    return_normalization: bool = True
    warmup_model_updates: NonNegativeInt = 0
    random_episodes: NonNegativeInt = 1
    max_nonfinite: NonNegativeInt = 20
    max_faults: NonNegativeInt = 20

    @model_validator(mode="after")
    def _warmup_has_data(self) -> TrainingConfig:
        if self.warmup_model_updates > 0 and self.random_episodes == 0:
            raise ValueError("warmup_model_updates needs data: set random_episodes to at least 1, or the warm-up to 0")
        return self
