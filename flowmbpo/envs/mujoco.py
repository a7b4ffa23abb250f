"""What MuJoCo's tasks share: its warnings, OpenGL's variables, random impulses."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np

from flowmbpo.config.task import PerturbationConfig
from flowmbpo.envs.processes.group import Simulator
from flowmbpo.errors import EnvironmentFailure

_log = logging.getLogger("flowmbpo")

NO_OPENGL = {"MUJOCO_GL": "disabled"}
"""Environment variables of a process that simulates and never draws."""
RENDERING_HELP = (
    "Rendering needs EGL (package libegl1, best with a GPU driver) or OSMesa (package libosmesa6, software); "
    "install one and choose it with MUJOCO_GL=egl or MUJOCO_GL=osmesa."
)
_STREAM = 0x70757368  # spawn key of the impulses' randomness: whether a task is disturbed never changes its starts


class MuJoCoSimulator(Simulator):
    """A simulator of one environment that knows the state its last step started from, and MuJoCo's warnings."""

    _mujoco: Any
    _model: Any
    _data: Any

    def _bind(self, mujoco: Any, model: Any, data: Any) -> None:
        """Look up once what every step needs: the arrays of an MjData never move."""
        log_warnings(mujoco)
        self._mujoco, self._model, self._data = mujoco, model, data
        self._qpos, self._qvel = data.qpos, data.qvel
        self._warnings: np.ndarray = data.warning.number
        self._warning_names = tuple(mujoco.mjtWarning.__members__)
        self._no_warnings = np.zeros_like(self._warnings).tobytes()
        self._remember()

    def describe(self) -> str:
        """The state that the last step started from: where a step breaks, MuJoCo wipes what it led to."""
        time, *parts = self._before
        state = np.concatenate([np.frombuffer(part) for part in parts])
        text = np.array2string(state, precision=4, threshold=60, max_line_width=10_000)
        return f"before the step: time {time:.3f} s, {self._details()}positions and velocities {text}"

    def _details(self) -> str:
        """What else belongs to the state."""
        return ""

    def _remember(self) -> None:
        self._before = (self._data.time, self._qpos.tobytes(), self._qvel.tobytes())  # half the time of two copyto

    def _require_sound(self) -> None:
        """Raises EnvironmentFailure on MuJoCo's warnings (divergence, full contact buffers), as dm_control does."""
        if self._warnings.tobytes() != self._no_warnings:  # a sixth of the time of `.any()`
            names = [name for name, count in zip(self._warning_names, self._warnings, strict=False) if count]
            raise EnvironmentFailure(f"the physics state is invalid ({', '.join(names)}); {self.describe()}")


def log_warnings(mujoco: Any) -> None:
    """Hand the warnings of the module `mujoco` to logging, once in a process.

    Left alone it prints each of them and appends it to MUJOCO_LOG.TXT in the working directory. What
    matters of them reaches the user as an episode's fault.
    """
    if mujoco.get_mju_user_warning() is None:
        mujoco.set_mju_user_warning(_log.info)


@contextmanager
def environment_variables(changed: Mapping[str, str]) -> Iterator[None]:
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


def rendering_variables() -> list[dict[str, str]]:
    """Environment variables of a rendering process, in the order to try them.

    A MUJOCO_GL that the user set is the only candidate. Without one, a headless Linux machine
    tries EGL, then OSMesa; one with a display tries its window system first.
    """
    chosen = os.environ.get("MUJOCO_GL")
    if chosen:
        return [{"MUJOCO_GL": chosen}]
    if sys.platform != "linux":
        return [{}]
    display = os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    backends = ("glfw", "egl", "osmesa") if display else ("egl", "osmesa")
    return [{"MUJOCO_GL": backend} for backend in backends]


def draw_impulses(
    config: PerturbationConfig, axes: int, length: int, seed: np.random.SeedSequence, *, skewed: int = 1
) -> tuple[np.ndarray, np.ndarray]:
    """Of an episode of L agent steps, before each: which axis is pushed, int64 [L], and by how much, float64 [L].

    How much is the sudden change of that velocity in m/s or rad/s: `magnitude` with probability `rate`, else 0; axes
    are chosen evenly. On the first `skewed` of them its sign is positive with probability (1 + skew)/2, on the others
    with 1/2: axis 0 is the forward one, and what lies across it has no preferred side.
    """
    own = np.random.SeedSequence(seed.entropy, spawn_key=(*seed.spawn_key, _STREAM))
    happens, which, sign = np.random.default_rng(own).random((3, length))
    axis = np.minimum((which * axes).astype(np.int64), axes - 1)
    skew = np.where(axis < skewed, config.skew, 0.0)
    change = np.where(sign < (1.0 + skew) / 2.0, config.magnitude, -config.magnitude)
    return axis, np.where(happens < config.rate, change, 0.0)
