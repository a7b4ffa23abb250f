"""Options of the FoG training loop (defaults: PWM's published values)."""

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


class AdaptiveHorizonConfig(FrozenConfig):
    """How far an actor update may trust the model, decided anew before each.

    The horizon is the largest h such that for every k <= h the model's k-step latent error (mean square, on
    `wm_batch_size` fresh replay windows) is below `tolerance` times that of predicting no change; at least `minimum`.
    """

    tolerance: PositiveFloat = 0.5
    minimum: PositiveInt = 1


Beta = Annotated[float, Field(ge=0.0, lt=1.0)]


class TrainingConfig(FrozenConfig):
    """One epoch: `horizon` steps in every environment, then `rounds` rounds of updates.

    A round is `wm_iterations` model updates, one actor update, and `critic_iterations` passes over
    `critic_batches` shuffled minibatches of that actor update's rollout.

    The actor imagines `horizon` steps, or `actor_horizon` of them (truncated), or as many up to there as
    `adaptive_horizon` trusts; the critic learns from what was imagined. Collection and model updates keep `horizon`.

    `preactivation_penalty` weighs the mean square of what the actor puts into its tanh, at the start states:
    first-order gradients vanish in a saturated tanh, and a policy that got there stays. `exploration_noise` is the std
    of Gaussian noise on collected actions, clipped to [-1, 1]. `mode: offline` learns from a dataset and collects
    nothing; `learn: model` leaves the policy alone, `policy` keeps the world model as it is. `pretrain_steps` model
    updates on a dataset come before the first epoch of an online run. `updates_per_step` makes so many rounds per agent
    step, all environments counted, between the steps of collecting, in place of `rounds` after them. `critic_replay`
    weighs the critic's loss at replayed states, on TD(lambda) targets of real rewards, beside that at imagined ones.
    `max_faults` is how many episodes that the simulator broke may be thrown away before the run stops.
    """

    mode: Literal["online", "offline"] = "online"
    learn: Literal["all", "model", "policy"] = "all"
    pretrain_steps: NonNegativeInt = 0
    epochs: PositiveInt = 15_000
    horizon: PositiveInt = 16
    actor_horizon: PositiveInt | None = None  # null: horizon
    adaptive_horizon: AdaptiveHorizonConfig | None = None
    rounds: PositiveInt = 1
    updates_per_step: PositiveFloat | None = None
    wm_batch_size: PositiveInt = 256
    wm_iterations: PositiveInt = 8
    wm_buffer_size: PositiveInt = 1_000_000
    actor_batch_size: PositiveInt | None = None  # null: the number of environments
    noise_replicas: PositiveInt = 1
    critic_iterations: PositiveInt = 8
    critic_batches: PositiveInt = 4
    critic_replay: NonNegativeFloat = 0.0
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
    def _learns_what_the_mode_allows(self) -> TrainingConfig:
        if self.warmup_model_updates > 0 and self.random_episodes == 0:
            raise ValueError("warmup_model_updates needs data: set random_episodes to at least 1, or the warm-up to 0")
        if self.mode == "online" and self.learn == "model":
            raise ValueError("learn 'model' needs mode 'offline': an online run collects with its policy")
        if self.mode == "offline" and self.pretrain_steps > 0:
            raise ValueError("pretrain_steps belong to online runs; an offline run has epochs alone")
        if self.mode == "offline" and self.updates_per_step is not None:
            raise ValueError("updates_per_step counts collected steps, and an offline run collects none: use rounds")
        if self.updates_per_step is not None and self.rounds != 1:
            raise ValueError("rounds and updates_per_step both say how often to update: leave rounds at 1")
        if self.learn == "policy" and self.pretrain_steps > 0:
            raise ValueError("pretrain_steps train the world model, which learn 'policy' keeps as it is")
        return self

    @model_validator(mode="after")
    def _actor_stays_within_the_model_s_horizon(self) -> TrainingConfig:
        if self.actor_horizon is not None and self.actor_horizon > self.horizon:
            raise ValueError(
                f"actor_horizon {self.actor_horizon} exceeds horizon {self.horizon}: the model is trained for "
                "rollouts of that length only. Lower it, or raise horizon"
            )
        if self.adaptive_horizon is not None and self.adaptive_horizon.minimum > self.longest_actor_horizon:
            raise ValueError(
                f"adaptive_horizon.minimum {self.adaptive_horizon.minimum} exceeds the longest that the actor may "
                f"imagine, {self.longest_actor_horizon} (actor_horizon, or horizon)"
            )
        return self

    def rounds_per_epoch(self, num_envs: int) -> float:
        """Rounds of updates of an epoch of so many environments; a mean, where steps earn parts of a round."""
        if self.updates_per_step is None:
            return self.rounds
        return self.updates_per_step * self.horizon * num_envs

    @property
    def longest_actor_horizon(self) -> int:
        """Imagined steps of an actor update; at most so many where they adapt."""
        return self.actor_horizon or self.horizon
