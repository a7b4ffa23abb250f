"""Random impulses that disturb an episode, drawn from the episode's own seed. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from flowmbpo.envs.config import PerturbationConfig

_STREAM = 0x70757368
"""Spawn key of the impulses' randomness: whether a task is disturbed never changes its starts."""


@dataclass(frozen=True)
class Impulses:
    """Of one episode of L agent steps, before each step: which axis is pushed, and by how much.

    `axis` [L] counts the axes that the simulator offers; `change` [L] is the sudden change of that
    velocity in m/s or rad/s, 0 where nothing happens.
    """

    axis: np.ndarray
    change: np.ndarray


def draw_impulses(
    config: PerturbationConfig, axes: int, length: int, seed: np.random.SeedSequence, *, skewed: int = 1
) -> Impulses:
    """Each step has an impulse with probability `rate`, on one of `axes` axes chosen evenly.

    Its size is `magnitude`. On the first `skewed` axes its sign is positive with probability
    (1 + skew)/2, on the others with 1/2: axis 0 is the forward one, and what lies across it has no
    preferred side.
    """
    own = np.random.SeedSequence(seed.entropy, spawn_key=(*seed.spawn_key, _STREAM))
    happens, which, sign = np.random.default_rng(own).random((3, length))
    axis = np.minimum((which * axes).astype(np.int64), axes - 1)
    skew = np.where(axis < skewed, config.skew, 0.0)
    change = np.where(sign < (1.0 + skew) / 2.0, config.magnitude, -config.magnitude)
    return Impulses(axis=axis, change=np.where(happens < config.rate, change, 0.0))
