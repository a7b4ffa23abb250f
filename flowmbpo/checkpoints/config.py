"""Options of checkpoints. Imports no torch."""

from __future__ import annotations

from flowmbpo.config.base import FrozenConfig, NonNegativeInt


class CheckpointConfig(FrozenConfig):
    """`every` epochs `latest` is renewed (0: only at the end); the newest `keep` epoch files stay."""

    every: NonNegativeInt = 200
    keep: NonNegativeInt = 0
