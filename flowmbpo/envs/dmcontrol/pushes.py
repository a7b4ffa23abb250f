"""Which velocities of a Control Suite model a random impulse may change. Imports no torch and no simulator."""

from __future__ import annotations

from typing import Any

import numpy as np

_FREE, _SLIDE, _HINGE = 0, 2, 3  # mjtJoint
_LEVEL = 0.5  # a slide whose axis rises less than this is horizontal


def pushable_velocities(model: Any) -> np.ndarray:
    """Indices into `qvel`: the level motion of bodies that stand in the world, or else every hinge.

    Walker, cheetah and hopper offer their torso's slide along x, free bodies x and y, the cart its
    rail; arms and pendulums that are fixed to the world offer their joints.
    """
    level, hinges = [], []
    for joint in range(model.njnt):
        kind, first = int(model.jnt_type[joint]), int(model.jnt_dofadr[joint])
        parent = int(model.body_parentid[model.jnt_bodyid[joint]])
        if kind == _FREE and parent == 0:
            level += [first, first + 1]
        elif kind == _SLIDE and parent == 0 and abs(model.jnt_axis[joint, 2]) < _LEVEL:
            level.append(first)
        elif kind == _HINGE:
            hinges.append(first)
    return np.array(level or hinges, dtype=np.int64)
