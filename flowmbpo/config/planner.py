"""Options of the planner (defaults: TD-MPC2's)."""

from __future__ import annotations

from pydantic import model_validator

from flowmbpo.config.base import FrozenConfig, NonNegativeInt, PositiveFloat, PositiveInt

ITERATIONS = 6
WIDE_ACTION = 20  # from so many action dimensions on, TD-MPC2 searches longer
WIDE_ITERATIONS = 8


class MPPIConfig(FrozenConfig):
    """Model predictive path integral control (Williams et al. 2015) as TD-MPC2 plans (Hansen et al. 2024).

    Every step plans `horizon` actions: `iterations` times (null: 6, or 8 from 20 action dimensions on) `samples` action
    sequences are valued, `policy_samples` of them the policy's, and the best `elites` move the mean and the std (kept
    between `min_std` and `max_std`) of the next ones, weighted by exp(temperature (value - best value)). `explore` adds
    noise of the final std to the action, as TD-MPC2 does while it collects. `rows` bounds memory: so many sequences at
    once pass through the model, at least one environment's.
    """

    horizon: PositiveInt = 3
    iterations: PositiveInt | None = None
    samples: PositiveInt = 512
    elites: PositiveInt = 64
    policy_samples: NonNegativeInt = 24
    min_std: PositiveFloat = 0.05
    max_std: PositiveFloat = 2.0
    temperature: PositiveFloat = 0.5
    explore: bool = False
    rows: PositiveInt = 16_384

    @model_validator(mode="after")
    def _shares_fit(self) -> MPPIConfig:
        if self.elites > self.samples:
            raise ValueError(f"elites {self.elites} exceeds samples {self.samples}, which they are chosen from")
        if self.policy_samples > self.samples:
            raise ValueError(f"policy_samples {self.policy_samples} exceeds samples {self.samples}, which they are of")
        if self.min_std > self.max_std:
            raise ValueError(f"min_std {self.min_std} exceeds max_std {self.max_std}")
        return self

    def iterations_for(self, action_dim: int) -> int:
        """How often the search repeats for actions of `action_dim` dimensions."""
        if self.iterations is not None:
            return self.iterations
        return WIDE_ITERATIONS if action_dim >= WIDE_ACTION else ITERATIONS
