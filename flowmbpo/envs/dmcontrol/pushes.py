"""Which velocities of a Control Suite model a random impulse may change."""

from __future__ import annotations

from typing import Any

import numpy as np

_FREE, _SLIDE, _HINGE = 0, 2, 3  # mjtJoint
_ON_JOINT, _ON_JOINT_IN_PARENT, _ON_TENDON = 0, 1, 3  # mjtTrn
_AROUND_JOINT, _THROUGH_SITE = 1, 3  # mjtWrap
_LEVEL = 0.5  # a slide whose axis rises less than this is horizontal


def pushable_velocities(model: Any) -> tuple[np.ndarray, int]:
    """The level motion of driven bodies that stand in the world, or else each of their joints: indices into `qvel`.

    With them, on how many of the first a push may prefer a direction. Walker, cheetah and hopper offer their torso's
    slide along x, free bodies x and y, the cart its rail; arms and pendulums that are fixed to the world offer their
    joints. Balls, boxes and whatever else no actuator drives are left alone.
    """
    driven = _driven_trees(model)
    level, joints = [], []
    for joint in range(model.njnt):
        kind, first = int(model.jnt_type[joint]), int(model.jnt_dofadr[joint])
        if int(model.dof_treeid[first]) not in driven:
            continue
        in_world = model.body_parentid[model.jnt_bodyid[joint]] == 0
        if kind == _FREE and in_world:
            level += [first, first + 1]
        elif kind == _SLIDE and in_world and abs(model.jnt_axis[joint, 2]) < _LEVEL:
            level.append(first)
        if kind in (_SLIDE, _HINGE):
            joints.append(first)
    if level:
        return np.array(level, dtype=np.int64), 1
    return np.array(joints, dtype=np.int64), len(joints)


def _driven_trees(model: Any) -> set[int]:
    """The kinematic trees in which a joint or a tendon of an actuator lies."""
    joints, bodies = set[int](), set[int]()
    for kind, target in zip(model.actuator_trntype.tolist(), model.actuator_trnid[:, 0].tolist(), strict=True):
        if kind in (_ON_JOINT, _ON_JOINT_IN_PARENT):
            joints.add(target)
        elif kind == _ON_TENDON:
            start = int(model.tendon_adr[target])
            for wrap in range(start, start + int(model.tendon_num[target])):
                if model.wrap_type[wrap] == _AROUND_JOINT:
                    joints.add(int(model.wrap_objid[wrap]))
                elif model.wrap_type[wrap] == _THROUGH_SITE:
                    bodies.add(int(model.site_bodyid[model.wrap_objid[wrap]]))
    bodies |= {int(model.jnt_bodyid[joint]) for joint in joints}
    return {int(model.body_treeid[body]) for body in bodies}
