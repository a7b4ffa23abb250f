"""Frames of real episodes, for videos."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from flowmbpo.envs.contract import VectorEnv
from flowmbpo.errors import EnvironmentFailure
from flowmbpo.evaluation.returns import Policy


def record_episodes(policy: Policy, env: VectorEnv, episodes: int, seed: int) -> Iterator[np.ndarray]:
    """Frames (uint8 [height, width, 3]) of the first copy's first `episodes` episodes from `seed`.

    One frame per observation acted upon; an episode's final observation has none, because the
    environment has reset itself by then. One copy is enough: make `env` with `num_envs` 1.
    """
    obs = env.reset(seed)
    while episodes > 0:
        yield env.render(0)
        # Entered anew for each step: a generator must not leave gradients off in its caller.
        with torch.no_grad():
            step = env.step(policy(obs, env.task_ids).to(obs.device))
        if step.faults:
            raise EnvironmentFailure(f"{step.faults[0]}; no film is made of an episode that broke")
        obs = step.obs
        episodes -= int(step.done[0])
