"""Which OpenGL backends a rendering process may try, and what to say when none works. Imports no torch."""

from __future__ import annotations

import os
import sys

NO_OPENGL = {"MUJOCO_GL": "disabled"}
"""Environment variables of a process that simulates and never draws."""

RENDERING_HELP = (
    "Rendering needs EGL (package libegl1, best with a GPU driver) or OSMesa (package libosmesa6, software); "
    "install one and choose it with MUJOCO_GL=egl or MUJOCO_GL=osmesa."
)


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
