"""Where an episode's randomness comes from. Imports no torch."""

from __future__ import annotations

import numpy as np


def episode_seed(seed: int, index: int, episode: int) -> np.random.SeedSequence:
    """The seed of episode `episode` of copy `index`: a function of these three numbers only."""
    return np.random.SeedSequence([seed, index, episode])
