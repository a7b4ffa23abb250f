"""Environments made in this process without OpenGL, and closed when done with."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from flowmbpo.envs.base import VectorEnv
from flowmbpo.envs.config import TaskConfig
from flowmbpo.envs.make import make_env
from flowmbpo.envs.opengl import NO_OPENGL


@contextmanager
def open_env(
    config: TaskConfig, copies: int, workers: int, *, seed: int = 0, device: str = "cpu", only: int | None = None
) -> Iterator[VectorEnv]:
    """What `make_env` makes, closed at the end of the block.

    Simulators choose their OpenGL backend when they are imported, which copies in this process do
    here: they get none, so that a broken driver cannot keep them from stepping. Pictures are drawn
    by a process of their own, which is started later and with the user's MUJOCO_GL.
    """
    with _variables(NO_OPENGL):
        env = make_env(config, copies, workers, seed=seed, device=device, only=only)
    try:
        yield env
    finally:
        env.close()


@contextmanager
def _variables(changed: dict[str, str]) -> Iterator[None]:
    """These environment variables inside the block, the former ones after it."""
    before = {name: os.environ.get(name) for name in changed}
    os.environ.update(changed)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
