"""The DMControl tasks and their widths. Imports no torch and no simulator.

Widths were read from dm_control 1.0.28; a test compares the table with the simulator. Three tasks
of its suite are left out: the two of `lqr` have no time limit and unbounded actions, and
`quadruped-escape` needs an OpenGL context in every simulating process to upload its terrain.
"""

from __future__ import annotations

from flowmbpo.spec import TaskInfo, timed_task

_SUITE_WIDTHS = {
    "acrobot-swingup": (6, 1),
    "acrobot-swingup-sparse": (6, 1),
    "cartpole-balance": (5, 1),
    "cartpole-balance-sparse": (5, 1),
    "cartpole-swingup": (5, 1),
    "cartpole-swingup-sparse": (5, 1),
    "cartpole-three-poles": (11, 1),
    "cartpole-two-poles": (8, 1),
    "cheetah-run": (17, 6),
    "cup-catch": (8, 2),
    "dog-fetch": (232, 38),
    "dog-run": (223, 38),
    "dog-stand": (223, 38),
    "dog-trot": (223, 38),
    "dog-walk": (223, 38),
    "finger-spin": (9, 2),
    "finger-turn-easy": (12, 2),
    "finger-turn-hard": (12, 2),
    "fish-swim": (24, 5),
    "fish-upright": (21, 5),
    "hopper-hop": (15, 4),
    "hopper-stand": (15, 4),
    "humanoid-run": (67, 21),
    "humanoid-run-pure-state": (55, 21),
    "humanoid-stand": (67, 21),
    "humanoid-walk": (67, 21),
    "humanoid_CMU-run": (137, 56),
    "humanoid_CMU-stand": (137, 56),
    "humanoid_CMU-walk": (137, 56),
    "manipulator-bring-ball": (44, 5),
    "manipulator-bring-peg": (44, 5),
    "manipulator-insert-ball": (44, 5),
    "manipulator-insert-peg": (44, 5),
    "pendulum-swingup": (3, 1),
    "point_mass-easy": (4, 2),
    "point_mass-hard": (4, 2),
    "quadruped-fetch": (90, 12),
    "quadruped-run": (78, 12),
    "quadruped-walk": (78, 12),
    "reacher-easy": (6, 2),
    "reacher-hard": (6, 2),
    "stacker-stack-2": (49, 5),
    "stacker-stack-4": (63, 5),
    "swimmer-swimmer6": (25, 5),
    "swimmer-swimmer15": (61, 14),
    "walker-run": (24, 6),
    "walker-stand": (24, 6),
    "walker-walk": (24, 6),
}
_EXTRA_WIDTHS = {
    "cheetah-jump": (17, 6),
    "cheetah-run-back": (17, 6),
    "cheetah-run-backwards": (17, 6),
    "cheetah-run-front": (17, 6),
    "cup-spin": (8, 2),
    "hopper-hop-backwards": (15, 4),
    "pendulum-spin": (3, 1),
    "reacher-three-easy": (8, 3),
    "reacher-three-hard": (8, 3),
    "walker-run-backwards": (24, 6),
    "walker-walk-backwards": (24, 6),
}
_REPEAT = 2
_CONTROL_STEPS = 1000  # of every task, whatever its time limit in seconds


def _rows(widths: dict[str, tuple[int, int]]) -> tuple[TaskInfo, ...]:
    return tuple(timed_task(name, "dmcontrol", pair, _CONTROL_STEPS, _REPEAT) for name, pair in widths.items())


SUITE_TASKS: tuple[TaskInfo, ...] = _rows(_SUITE_WIDTHS)
"""The tasks that dm_control ships."""

EXTRA_TASKS: tuple[TaskInfo, ...] = _rows(_EXTRA_WIDTHS)
"""TD-MPC2's tasks on dm_control's models (`flowmbpo.envs.dmcontrol.extra`)."""

TASKS: tuple[TaskInfo, ...] = SUITE_TASKS + EXTRA_TASKS
