"""Frames of an environment that nobody controls: under zero or random actions."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import numpy as np
import torch

from flowmbpo.envs.contract import VectorEnv
from flowmbpo.envs.inspection.recording import random_actions

Motion = Literal["zero", "random"]


def film(env: VectorEnv, steps: int, seed: int, motion: Motion) -> Iterator[np.ndarray]:
    """The first copy's frame at the start and after each of `steps` agent steps, uint8 [height, width, 3].

    An episode that ends on the way is followed by the next.
    """
    for _ in walk(env, steps, seed, motion):
        yield env.render(0)


def walk(env: VectorEnv, steps: int, seed: int, motion: Motion) -> Iterator[int]:
    """Reset from `seed`, then step; yields the number of agent steps taken so far, 0 to `steps`."""
    env.reset(seed)
    yield 0
    shape = (steps, env.num_envs, env.spec.action_dim)
    actions = torch.zeros(shape) if motion == "zero" else random_actions(env, steps, seed)
    for place, action in enumerate(actions, start=1):
        env.step(action)
        yield place
