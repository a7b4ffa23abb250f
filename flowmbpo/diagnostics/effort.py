"""How much a diagnostic measures."""

from __future__ import annotations

from dataclasses import dataclass

from flowmbpo.config.sections import DiagnosticsConfig

LIGHT_HORIZON = 16


@dataclass(frozen=True)
class Effort:
    """Sample sizes. The defaults are those of `flowmbpo diagnose`.

    `gradients` M independent gradients of an ESNR; `probes` random vectors of a Jacobian norm;
    `windows` stretches of `horizon` transitions; `rows` states at which Jacobians and action
    statistics are taken; `episodes` whole real episodes; `resamples` of a bootstrap.
    """

    gradients: int = 64
    probes: int = 64
    windows: int = 256
    horizon: int = 32
    rows: int = 256
    episodes: int = 8
    resamples: int = 1000

    @classmethod
    def light(cls, config: DiagnosticsConfig) -> Effort:
        """What a run measures of itself while it trains; no episodes are run for it."""
        return cls(
            gradients=config.gradients,
            probes=config.probes,
            windows=config.windows,
            horizon=LIGHT_HORIZON,
            rows=config.windows,
            episodes=0,
            resamples=0,
        )
